"""Tasks: rows of prompts and demonstrations, and a grade for each response. Text is parsed, never evaluated."""

from ippo_lightning.tasks.answers import (
    AnswerGrader,
    extract_answer,
    grade_boxed,
    grade_hash,
    grade_number,
    grade_option,
    named_grader,
    same_answer,
)
from ippo_lightning.tasks.arithmetic.grading import MAX_DIGITS, ArithmeticProblem, Step, grade_arithmetic
from ippo_lightning.tasks.arithmetic.task import ArithmeticTask
from ippo_lightning.tasks.arithmetic.unfaithful import UNFAITHFUL_KINDS, unfaithful_response
from ippo_lightning.tasks.conversations import Conversation, Message, messages_fault, row_prompt
from ippo_lightning.tasks.graders import (
    MAX_LABEL_LENGTH,
    WRONG_LABELS,
    as_grade,
    call_grader,
    call_grader_on_all,
    check_grader,
)
from ippo_lightning.tasks.grades import Grade, Label, label_text
from ippo_lightning.tasks.gsm8k.grading import grade_gsm8k, gsm8k_answer
from ippo_lightning.tasks.gsm8k.task import GSM8KTask
from ippo_lightning.tasks.named import TASKS, named_task
from ippo_lightning.tasks.names import callable_name
from ippo_lightning.tasks.protocol import Grader, NeedsPreparation, Row, Split, Task, TaskLike
from ippo_lightning.tasks.questions.sources import Columns, Source
from ippo_lightning.tasks.questions.task import QuestionTask
from ippo_lightning.tasks.sentiment import SentimentGrader
from ippo_lightning.tasks.steps import label_steps
from ippo_lightning.tasks.word_problems.grading import grade_word_problem
from ippo_lightning.tasks.word_problems.task import WordProblemsTask

__all__ = [
    "MAX_DIGITS",
    "MAX_LABEL_LENGTH",
    "TASKS",
    "UNFAITHFUL_KINDS",
    "WRONG_LABELS",
    "AnswerGrader",
    "ArithmeticProblem",
    "ArithmeticTask",
    "Columns",
    "Conversation",
    "GSM8KTask",
    "Grade",
    "Grader",
    "Label",
    "Message",
    "NeedsPreparation",
    "QuestionTask",
    "Row",
    "SentimentGrader",
    "Source",
    "Split",
    "Step",
    "Task",
    "TaskLike",
    "WordProblemsTask",
    "as_grade",
    "call_grader",
    "call_grader_on_all",
    "callable_name",
    "check_grader",
    "extract_answer",
    "grade_arithmetic",
    "grade_boxed",
    "grade_gsm8k",
    "grade_hash",
    "grade_number",
    "grade_option",
    "grade_word_problem",
    "gsm8k_answer",
    "label_steps",
    "label_text",
    "messages_fault",
    "named_grader",
    "named_task",
    "row_prompt",
    "same_answer",
    "unfaithful_response",
]
