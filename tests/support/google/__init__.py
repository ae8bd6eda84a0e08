"""The parts of our Google Cloud Storage: objects, uploads, the two APIs. `support.gcs` serves them."""
