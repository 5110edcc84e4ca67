"""Certificates and keys of a federation: made for a trial, and checked before anything is started with them.

A server shows a certificate that an authority has signed; sites hold the authority's certificate, and trust no other.
A site proves who it is by a key of its own, whose public half the server has registered. Flower's own messages on wrong
files are terse or come late, from another process; here each names the file, what was found and what is needed.
"""

from __future__ import annotations

import ipaddress
import logging
import socket
import ssl
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from phosphene.errors import InputError

__all__ = ["check_reached", "check_server_files", "check_site_files", "make_node_key", "make_server_files"]

log = logging.getLogger(__name__)

_PRIVATE = 0o600
_CURVES = ("secp256r1", "secp384r1", "secp521r1")


def make_server_files(folder: str | Path, hosts: list[str], days: int = 30) -> dict[str, Path]:
    """A new authority and a server's certificate, for a trial; a hospital's own authority does better.

    The authority's key is thrown away: nothing else can be signed with it.

    Parameters
    ----------
    folder : str or Path
    hosts : list of str
        Names and addresses by which sites, and the server itself, reach the server.
    days : int
        For which they hold.

    Returns
    -------
    dict of str to Path
        ``authority``, ``certificate`` and ``key``.
    """
    if not hosts:
        raise InputError("a server's certificate needs at least one host name or address")
    folder, authority_key, key = Path(folder), ec.generate_private_key(ec.SECP384R1()), _new_key()
    files = {name: folder / file for name, file in _SERVER_FILES.items()}
    authority_name = _name("phosphene trial authority")
    authority = (
        _certificate(authority_name, authority_name, authority_key.public_key(), days)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(authority=True), critical=True)
        .sign(authority_key, hashes.SHA256())
    )
    certificate = (
        _certificate(_name("phosphene server"), authority_name, key.public_key(), days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(authority=False), critical=True)
        .add_extension(x509.SubjectAlternativeName([_host(each) for each in hosts]), critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    _write(files["authority"], authority.public_bytes(serialization.Encoding.PEM))
    _write(files["certificate"], certificate.public_bytes(serialization.Encoding.PEM))
    _write(files["key"], _private_bytes(key, serialization.PrivateFormat.PKCS8), private=True)
    return files


def make_node_key(path: str | Path) -> tuple[Path, Path]:
    """A site's key, and beside it (``.pub``) the half that the server registers."""
    path, key = Path(path), _new_key()
    public = path.with_name(f"{path.name}.pub")
    _write(path, _private_bytes(key, serialization.PrivateFormat.OpenSSH), private=True)
    openssh = (serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    _write(public, key.public_key().public_bytes(*openssh) + b"\n")
    return path, public


def check_server_files(authority: str | Path, certificate: str | Path, key: str | Path, host: str) -> None:
    """Refuse what a server cannot show to its sites.

    Parameters
    ----------
    authority, certificate, key : str or Path
    host : str
        Name or address under which it is reached.

    Raises
    ------
    InputError
        For files that are missing or of another kind, a certificate that another authority signed, that does not hold
        today, that belongs to another key or to other hosts.
    """
    trusted, shown = _read_certificate(authority), _read_certificate(certificate)
    _check_dates(certificate, shown)
    _check_authority(authority, trusted)
    try:
        shown.verify_directly_issued_by(trusted)
    except (ValueError, TypeError, InvalidSignature) as error:
        raise InputError(
            f"{certificate} was issued by {shown.issuer.rfc4514_string()}, and not signed by {authority} "
            f"({trusted.subject.rfc4514_string()}): sites would refuse it"
        ) from error
    own = _read_key(key, serialization.load_pem_private_key, "an unencrypted private key in PEM")
    if own.public_key() != shown.public_key():
        raise InputError(f"{key} is not the key of {certificate}: give the pair that belongs together")
    hosts = _hosts(shown)
    if host not in hosts:
        raise InputError(f"{certificate} holds for {', '.join(hosts) or 'no host'}; the server is reached as {host}")


def check_site_files(authority: str | Path, key: str | Path) -> None:
    """Refuse what a site cannot trust the server by, or prove itself with.

    Raises
    ------
    InputError
        For files that are missing or of another kind, an authority that does not hold today, and a key that others on
        the machine may read.
    """
    _check_authority(authority, _read_certificate(authority))
    own = _read_key(key, serialization.load_ssh_private_key, "an unencrypted private key in OpenSSH's form")
    curve = own.curve.name if isinstance(own, ec.EllipticCurvePrivateKey) else type(own).__name__
    if curve not in _CURVES:
        raise InputError(f"{key} is a key of kind {curve}; nodes prove themselves by ECDSA on {', '.join(_CURVES)}")
    if (mode := Path(key).stat().st_mode & 0o077) != 0:
        raise InputError(f"{key} may be read by others on this machine (mode {mode:03o} beyond its owner): chmod 600")


def check_reached(authority: str | Path, host: str, port: int, seconds: float = 10.0) -> None:
    """Refuse a server that the authority does not vouch for; one that is not up yet is only reported.

    Raises
    ------
    InputError
        For a server without TLS, with a certificate of another authority, or for another host.
    """
    context = ssl.create_default_context(cafile=str(authority))
    try:
        with (
            socket.create_connection((host, port), timeout=seconds) as plain,
            context.wrap_socket(plain, server_hostname=host),
        ):
            return
    except ssl.SSLCertVerificationError as error:
        raise InputError(
            f"the server at {host}:{port} shows a certificate that {authority} does not vouch for "
            f"({error.verify_message}): ask for the authority's certificate, and reach the server under its own name"
        ) from error
    except ssl.SSLError as error:
        raise InputError(f"{host}:{port} does not answer in TLS ({error.reason}): is it the server's port?") from error
    except OSError as error:
        log.warning("%s:%d cannot be reached now (%s); the site keeps trying", host, port, error)


_SERVER_FILES = {"authority": "authority.crt", "certificate": "server.crt", "key": "server.key"}


# -- reading --------------------------------------------------------------------------------------------------------


def _bytes(path: str | Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error


def _read_certificate(path: str | Path) -> x509.Certificate:
    content = _bytes(path)
    try:
        return x509.load_pem_x509_certificate(content)
    except ValueError as error:
        raise InputError(f"{path} is no certificate in PEM: its text must begin with BEGIN CERTIFICATE") from error


def _read_key(path: str | Path, load: Callable[..., Any], wanted: str) -> Any:
    content = _bytes(path)
    try:
        return load(content, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise InputError(f"{path} is not {wanted}") from error


def _check_authority(path: str | Path, found: x509.Certificate) -> None:
    _check_dates(path, found)
    try:
        authority = found.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        authority = False
    if not authority:
        raise InputError(f"{path} is the certificate of {found.subject.rfc4514_string()}, which is no authority")


def _check_dates(path: str | Path, found: x509.Certificate) -> None:
    first, last = found.not_valid_before_utc, found.not_valid_after_utc
    if not first <= datetime.now(UTC) <= last:
        raise InputError(f"{path} holds from {first:%Y-%m-%d %H:%M} to {last:%Y-%m-%d %H:%M} UTC, and not now")


def _hosts(found: x509.Certificate) -> list[str]:
    try:
        names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return [str(each) for kind in (x509.DNSName, x509.IPAddress) for each in names.get_values_for_type(kind)]


# -- making ---------------------------------------------------------------------------------------------------------


def _new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP384R1())


def _name(words: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, words)])


def _host(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(text)


def _certificate(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _private_bytes(key: ec.EllipticCurvePrivateKey, form: serialization.PrivateFormat) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())


def _write(path: Path, content: bytes, private: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        raise InputError(f"{path} exists: keys and certificates are not written over")
    path.touch(mode=_PRIVATE if private else 0o644)
    path.write_bytes(content)
