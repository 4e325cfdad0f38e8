"""Readers of raw instruction data. They know the formats, not what is made of them."""

from flan_moe.data.readers.errors import RawDataError
from flan_moe.data.readers.flan_cot import cot_files, cot_task_name, read_cot_task
from flan_moe.data.readers.jsonl import jsonl_files, jsonl_task_name, read_jsonl_task
from flan_moe.data.readers.natural_instructions import (
    natural_instructions_files,
    read_natural_instructions_task,
)
from flan_moe.data.readers.record import RawTask, Record

__all__ = [
    "RawDataError",
    "RawTask",
    "Record",
    "cot_files",
    "cot_task_name",
    "jsonl_files",
    "jsonl_task_name",
    "natural_instructions_files",
    "read_cot_task",
    "read_jsonl_task",
    "read_natural_instructions_task",
]
