"""From a config to objects: the only place that reads one."""
