"""Why a session cannot be had; all are ValueErrors, whose text is for the user."""


class SessionError(ValueError):
    """Something about a session is not as was asked for."""


class SessionMissing(SessionError):
    """There is no such session, or no such version of it."""


class VersionConflict(SessionError):
    """Another writer was first."""


class SessionExists(VersionConflict):
    """The name is taken."""


class SessionRefused(SessionError):
    """The state is another model's, or its file is not as it was written."""


class SessionsUnavailable(SessionError):
    """Where sessions are kept cannot be reached, or is full; what was kept is as it was."""
