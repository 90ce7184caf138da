"""What a user can cause, said in one line: no traceback leaves the command line for these."""


class PairmillError(Exception):
    """An error with its remedy. `what` names the file, row or key at fault; `remedy` says what to do about it."""

    def __init__(self, what: str, remedy: str = "") -> None:
        super().__init__(what if not remedy else f"{what}\n  -> {remedy}")

    def __reduce__(self) -> tuple[type["PairmillError"], tuple[str]]:
        # Errors cross process borders; the joined message is all that has to arrive.
        return PairmillError, (str(self),)
