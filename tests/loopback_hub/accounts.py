"""Who may do what: users, their tokens, organizations, and the rules of private and gated repositories."""

import itertools

from .messages import Refusal
from .store import Repository


NO_TOKEN = "Invalid username or password."
WRONG_TOKEN = "Invalid credentials in Authorization header"


class Accounts:
    """Users `alice` and `bob`, and the organization `lab`, of which alice is a member."""

    def __init__(self) -> None:
        self.tokens: dict[str, tuple[str, str]] = {}  # token -> user, role
        self.organizations: dict[str, set[str]] = {"lab": {"alice"}}
        self.numbers = itertools.count(1)
        for user in ("alice", "bob"):
            self.token_of(user)

    def token_of(self, user: str, role: str = "write") -> str:
        """A token of a user, made when first asked for; with the role "read" it cannot push."""
        for token, owner in self.tokens.items():
            if owner == (user, role):
                return token
        token = f"hf_{user.title()}{role.title()}Secret{next(self.numbers):020d}"
        self.tokens[token] = (user, role)
        return token

    def user(self, token: str | None) -> str | None:
        """Whose token that is; none for no token."""
        if token is None:
            return None
        if token not in self.tokens:
            raise Refusal(401, WRONG_TOKEN)
        return self.tokens[token][0]

    def organizations_of(self, user: str) -> list[str]:
        return sorted(name for name, members in self.organizations.items() if user in members)

    def may_write(self, token: str | None, namespace: str) -> bool:
        user = self.user(token)
        is_member = user == namespace or user in self.organizations.get(namespace, ())
        return is_member and self.tokens[token][1] == "write"

    def check_create(self, token: str | None, namespace: str) -> None:
        if self.user(token) is None:
            raise Refusal(401, NO_TOKEN)
        if not self.may_write(token, namespace):
            message = f'You don\'t have the rights to create a model under the namespace "{namespace}"'
            raise Refusal(403, message)

    def check_write(self, token: str | None, repository: Repository) -> None:
        if self.user(token) is None:
            raise Refusal(401, NO_TOKEN)
        if not self.may_write(token, repository.repo_id.split("/")[0]):
            message = "Forbidden: you must use a write token to upload to a repository."
            raise Refusal(403, message)

    def check_read(self, token: str | None, repository: Repository, *, gate: bool = True) -> None:
        """Raise as for a repository that does not exist if it is private and none of the user's."""
        user = self.user(token)
        namespace = repository.repo_id.split("/")[0]
        if user is not None and (user == namespace or user in self.organizations.get(namespace, ())):
            return
        if repository.private:
            raise self.unknown_repository(token)
        if gate and repository.gated and user not in repository.readers:
            status = 401 if user is None else 403
            raise Refusal(status, f"Access to model {repository.repo_id} is restricted.", "GatedRepo")

    def unknown_repository(self, token: str | None) -> Refusal:
        """The Hub tells strangers nothing about whether it exists."""
        if self.user(token) is None:
            return Refusal(401, NO_TOKEN, "RepoNotFound")
        return Refusal(404, "Repository not found", "RepoNotFound")
