"""The sha256 of every file of a checkpoint that decides what it says."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column."""
    op.add_column("checkpoints", sa.Column("files", sa.JSON(), nullable=True))


def downgrade() -> None:
    """Take it back."""
    op.drop_column("checkpoints", "files")
