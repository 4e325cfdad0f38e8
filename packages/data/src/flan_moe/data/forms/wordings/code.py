"""Wordings of program repair: the program is shown with more or less of what the compiler said."""

from flan_moe.data.forms.wordings.wordings import Wordings

REPAIR = Wordings(
    zero_shot=(
        "{code}\nThis program does not compile. Write it correctly.",
        "Broken program:\n{code}\nCorrected program:",
        "Find and correct the mistake in this C++ code.\n\n{code}",
        "Repair the following program.\n{code}",
        "{code}\n\nWhat would the program look like without its error?",
        "A student handed in this code, which the compiler rejects:\n{code}\nGive back a version "
        "that compiles.",
        "There is one wrong line below. Write the program with that line put right.\n{code}",
        "Code with a bug:\n{code}\n\nCode without it:",
        "Debug this.\n{code}",
        "Make this compile:\n{code}",
    ),
    few_shot=(
        "{code}",
        "Broken:\n{code}",
        "Fix this:\n{code}",
        "Program with a mistake:\n{code}",
        "{code}\nRepair it.",
        "C++:\n{code}",
        "Does not compile:\n{code}",
        "Rejected code:\n{code}",
        "Bug in:\n{code}",
        "Wrong program\n{code}",
    ),
)

REPAIR_WITH_MESSAGE = Wordings(
    zero_shot=(
        "{code}\nThe compiler says: {message}\nWrite the program correctly.",
        "Broken program:\n{code}\nError: {message}\nCorrected program:",
        "Correct this C++ code so that the compiler no longer reports: {message}\n\n{code}",
        "Repair the following program.\n{code}\nMessage of the compiler: {message}",
        "I get this error: {message}\nMy code:\n{code}\nHow should it read?",
        "Compiler output: {message}\nSource:\n{code}\nSource that compiles:",
        "Put right what causes the error.\n{code}\nerror: {message}",
        "{message}\nThat is what I am told about this code:\n{code}\nPlease correct it.",
        "Code with a bug:\n{code}\n\nDiagnosis: {message}\n\nCode without it:",
        "Debug this. The error is {message}\n{code}",
    ),
    few_shot=(
        "{code}\n{message}",
        "Broken:\n{code}\nError: {message}",
        "{message}\n{code}",
        "Fix this:\n{code}\nerror: {message}",
        "Source:\n{code}\nCompiler: {message}",
        "C++:\n{code}\n({message})",
        "Does not compile ({message}):\n{code}",
        "Rejected code:\n{code}\nBecause: {message}",
        "Message: {message}\nBug in:\n{code}",
        "Wrong program\n{code}\nDiagnosis: {message}",
    ),
)

REPAIR_LINE = Wordings(
    zero_shot=(
        "{code}\n{message}\nWhich line has to change, and to what?",
        "Numbered program:\n{code}\nError: {message}\nCorrected line:",
        "Find the wrong line and write it correctly, with its number.\n\n{code}\n\n{message}",
        "The compiler reports {message}\n{code}\nGive the number of the faulty line and what "
        "should stand there.",
        "{code}\n\n{message}\n\nOne line must be replaced. Write the new one.",
        "Error message: {message}\nProgram:\n{code}\nReplacement (number: line):",
        "What has to be edited so that this compiles?\n{code}\n{message}",
        "Patch this program by one line.\n{code}\nDiagnosis: {message}",
        "{message}\nSource with line numbers:\n{code}\nFix:",
        "Give a correction of one line, as number: text.\n{code}\nerror: {message}",
    ),
    few_shot=(
        "{code}\n{message}",
        "Numbered program:\n{code}\nError: {message}",
        "{message}\n{code}",
        "Patch one line:\n{code}\n{message}",
        "Source:\n{code}\nCompiler: {message}",
        "C++:\n{code}\n({message})",
        "Which line? {message}\n{code}",
        "Rejected code:\n{code}\nBecause: {message}",
        "Message: {message}\nProgram:\n{code}",
        "{code}\nDiagnosis: {message}",
    ),
)
