"""What goes wrong with the views; whoever only names it need not carry a database's driver.

ViewsError
├── ViewsUnavailable   the database can't be reached, or holds nothing (yet) that could be read
├── Superseded         this generation of the views is gone: another one is served or built
└── BadCursor          this is no cursor that a page ever gave
"""


class ViewsError(Exception):
    """The views could not do what was asked."""


class ViewsUnavailable(ViewsError):
    """The views can't be read or written now."""


class Superseded(ViewsError):
    """This generation is gone."""


class BadCursor(ViewsError):
    """Not a cursor of ours."""
