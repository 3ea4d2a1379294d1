//! Who may connect to the Unix socket: the kernel names the user of each peer.

use std::os::fd::AsFd;

use rustix::net::sockopt::socket_peercred;

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

    /// Whether the peer of a Unix socket may; its user and group where not.
    pub(super) fn admits(&self, socket: &impl AsFd) -> Result<(), Option<(u32, u32)>> {
        let peer = socket_peercred(socket).map_err(|_| None)?;
        let (user, group) = (peer.uid.as_raw(), peer.gid.as_raw());
        if self.knows(user, group) { Ok(()) } else { Err(Some((user, group))) }
    }

    fn knows(&self, user: u32, group: u32) -> bool {
        user == self.own || user == 0 || self.users.contains(&user) || self.groups.contains(&group)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_else_may_unless_allowed() {
        let alone = Admission { own: 1000, users: Vec::new(), groups: Vec::new() };
        assert!(alone.knows(1000, 7) && alone.knows(0, 0) && !alone.knows(1001, 1000));
        let shared = Admission { own: 1000, users: vec![1001], groups: vec![44] };
        assert!(shared.knows(1001, 7) && shared.knows(1002, 44) && !shared.knows(1002, 45));
        assert!(shared.is_shared() && !alone.is_shared());
    }

    #[test]
    fn a_peer_of_ones_own_is_known_by_its_socket() {
        let (one, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        assert_eq!(Admission::new(&[], &[]).admits(&one), Ok(()));
    }
}
