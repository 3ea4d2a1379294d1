//! Who may connect to the Unix socket, and as what: the kernel names the user of each peer.

use std::os::fd::AsFd;

use rustix::net::sockopt::socket_peercred;

/// As what a peer of the Unix socket is let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// It is of the server's own user, or of root.
    Operator,
    /// It is of another user that may connect.
    Guest,
}

/// The users that may.
#[derive(Clone, Debug)]
pub(super) struct Admission {
    own: u32,
    users: Vec<u32>,
    groups: Vec<u32>,
}

impl Admission {
    /// The server's own user and root, these users, and those whose primary group is one of these.
    pub(super) fn new(users: &[u32], groups: &[u32]) -> Admission {
        let own = rustix::process::geteuid().as_raw();
        Admission { own, users: users.to_vec(), groups: groups.to_vec() }
    }

    /// Whether anybody but the server's own user may.
    pub(super) fn is_shared(&self) -> bool {
        !self.users.is_empty() || !self.groups.is_empty()
    }

    /// As what the peer of a Unix socket may connect; its user and group where it may not.
    pub(super) fn admit(&self, socket: &impl AsFd) -> Result<Role, Option<(u32, u32)>> {
        let peer = socket_peercred(socket).map_err(|_| None)?;
        let (user, group) = (peer.uid.as_raw(), peer.gid.as_raw());
        self.role(user, group).ok_or(Some((user, group)))
    }

    fn role(&self, user: u32, group: u32) -> Option<Role> {
        if user == self.own || user == 0 {
            return Some(Role::Operator);
        }
        (self.users.contains(&user) || self.groups.contains(&group)).then_some(Role::Guest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_else_may_unless_allowed() {
        let alone = Admission { own: 1000, users: Vec::new(), groups: Vec::new() };
        assert_eq!(
            [(1000, 7), (0, 0)].map(|(user, group)| alone.role(user, group)),
            [Some(Role::Operator); 2]
        );
        assert_eq!(alone.role(1001, 1000), None);
        assert!(!alone.is_shared());
    }

    #[test]
    fn who_is_let_in_operates_nothing() {
        let shared = Admission { own: 1000, users: vec![1001], groups: vec![44] };
        assert_eq!(
            [(1001, 7), (1002, 44)].map(|(user, group)| shared.role(user, group)),
            [Some(Role::Guest); 2]
        );
        assert_eq!((shared.role(1000, 44), shared.role(1002, 45)), (Some(Role::Operator), None));
        assert!(shared.is_shared());
    }

    #[test]
    fn a_peer_of_ones_own_is_known_by_its_socket() {
        let (one, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        assert_eq!(Admission::new(&[], &[]).admit(&one), Ok(Role::Operator));
    }
}
