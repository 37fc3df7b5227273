"""How far a run is: what a checkpoint holds beside weights, optimizer and features."""

import math
from dataclasses import asdict, dataclass, fields

NAN_PATIENCE = 10  # skipped steps in a row at which nan_policy=skip gives up


@dataclass
class Progress:
    """step: updates done or skipped; tokens: trained on; skipped: steps whose loss or gradient was not finite."""

    step: int = 0
    tokens: int = 0
    best_val_loss: float | None = None
    skipped: int = 0
    skipped_in_a_row: int = 0
    wandb_id: str | None = None
    updating = False  # true while weights are half updated: no checkpoint then

    @classmethod
    def of(cls, checkpoint):
        """As a checkpoint left it; None: of a run that starts."""
        return cls(**{f.name: checkpoint[f.name] for f in fields(cls)}) if checkpoint else cls()

    def note_validation(self, loss):
        """Returns whether this validation loss is the best so far; NaN never is. None: there was no evaluation."""
        is_number = loss is not None and not math.isnan(loss)
        improved = is_number and (self.best_val_loss is None or loss < self.best_val_loss)
        if improved:
            self.best_val_loss = loss
        return improved

    def begin(self, step):
        """The row of a step that begins."""
        self.step = step
        return {"step": step, "tokens": self.tokens}

    def end(self, finite, tokens):
        """Count a step of so many tokens; finite: whether its update was made."""
        self.tokens += tokens
        self.skipped += not finite
        self.skipped_in_a_row = 0 if finite else self.skipped_in_a_row + 1
        self.step, self.updating = self.step + 1, False

    def gives_up(self, nan_policy):
        """Whether the run ends after a step that was not finite."""
        return self.skipped_in_a_row > 0 and (nan_policy == "stop" or self.skipped_in_a_row == NAN_PATIENCE)

    def state_dict(self):
        return asdict(self)
