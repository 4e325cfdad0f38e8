"""The sub-commands of ``flan-moe-data``, a file each: ``add_parser`` and what it runs."""
