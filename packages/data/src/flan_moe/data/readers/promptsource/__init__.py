"""promptsource templates over raw rows: how the T0 tasks of the Flan collection were made.

github.com/bigscience-workshop/promptsource keeps, for each data set, a YAML file of Jinja templates
that turn a row into a prompt and a target. The templates are untrusted: they run in a sandbox with
few functions and a bounded amount of work.
"""

from flan_moe.data.readers.promptsource.rendering import PromptRenderer
from flan_moe.data.readers.promptsource.sets import T0Task, read_t0_task, t0_tasks
from flan_moe.data.readers.promptsource.templates import PromptTemplate, read_templates

__all__ = [
    "PromptRenderer",
    "PromptTemplate",
    "T0Task",
    "read_t0_task",
    "read_templates",
    "t0_tasks",
]
