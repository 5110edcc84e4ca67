"""PmcmFL: training across sites that keep their data, with trials that miss a modality."""
