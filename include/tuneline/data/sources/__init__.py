"""Read records from files, folders, buckets and hubs."""
