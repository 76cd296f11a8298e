"""What licences allow: of the base model, the data, the packages and the models that read data."""
