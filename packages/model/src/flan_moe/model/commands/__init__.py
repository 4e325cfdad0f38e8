"""The subcommands of ``flan-moe-model``, one module each."""
