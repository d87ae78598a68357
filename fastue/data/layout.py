"""The names of the files in a run's directory, for who writes them and who looks for them."""

MANIFEST = "manifest.json"  # written last: its presence means complete
RUN_FILE = "run.json"  # arguments, source and versions; never published
SURROGATE_FILE = "surrogate.safetensors"  # the network the noise was made with
KEY_FILE = "key.safetensors"  # of keyed noise, for who may train on the pictures; never published
