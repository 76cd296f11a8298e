"""The files of a release and the manifest that ties them."""
