"""What cannot be written is said once, and once more when it can."""

from collections.abc import Callable


class Trouble:
    """The state of something that a run writes for people: fine, or in trouble that has been said.

    what: its name at the start of a sentence, such as 'TensorBoard'. say: takes the sentence.
    """

    def __init__(self, what: str, say: Callable[[str], None]):
        self.what, self.say, self.is_there = what, say, False

    def came(self, why: Exception | str) -> None:
        """It could not be written just now."""
        if not self.is_there:
            self.is_there = True
            self.say(f'{self.what} cannot be written ({reason(why)}); the run goes on without.')

    def went(self) -> None:
        """It was written just now."""
        if self.is_there:
            self.is_there = False
            self.say(f'{self.what} can be written again.')


def reason(why: Exception | str) -> str:
    """An error in a few words of one line: 'No space left on device' of an OSError."""
    if isinstance(why, OSError) and why.strerror:
        return why.strerror
    if isinstance(why, Exception):
        why = f'{type(why).__name__}: {why}'
    return ' '.join(why.split())
