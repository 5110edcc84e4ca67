"""phosphene as a Flower app: what runs at the server, and what runs at every site."""

from phosphene.federation.flower import client_app, server_app

server = server_app()
client = client_app()
