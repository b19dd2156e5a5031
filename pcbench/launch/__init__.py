"""One sweep on many GPUs: shards for any scheduler, and launchers that start workers which share the work by claims."""
