//! How a sleeping reactor is woken: the ring's eventfd, which the kernel signals only while somebody sleeps.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering, fence};

use io_uring::IoUring;
use rustix::event::{EventfdFlags, eventfd};
use rustix::io_uring::{io_uring_params, io_uring_setup};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// `IORING_CQ_EVENTFD_DISABLED`.
const EVENTFD_DISABLED: u32 = 1;
/// `IORING_OFF_CQ_RING`: where a ring's descriptor maps its completion queue.
const COMPLETION_QUEUE: u64 = 0x800_0000;
/// The head of the queue, with its flags, lies in its first page.
const HEAD: usize = 4096;

/// An eventfd registered with a ring.
pub(super) struct Doorbell {
    eventfd: AsyncFd<OwnedFd>,
    /// The flags of the ring's completion queue; without them the kernel signals always, which only costs time.
    flags: Option<QueueFlags>,
}

impl Doorbell {
    /// Registers an eventfd with the ring.
    pub(super) fn new(ring: &mut IoUring) -> io::Result<Doorbell> {
        let eventfd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        ring.submitter().register_eventfd(eventfd.as_raw_fd())?;
        // SAFETY: an `OwnedFd` is open until it is dropped, which the `AsyncFd` that takes it does.
        let eventfd = unsafe { AsyncFd::register_with_interest(eventfd, Interest::READABLE) }?;
        Ok(Doorbell { eventfd, flags: QueueFlags::of(ring) })
    }

    /// Sleeps until the ring has something to do, unless it has already, which `is_idle` looks for once the bell is on.
    pub(super) async fn sleep(&self, is_idle: impl FnOnce() -> bool) {
        let _on = self.flags.as_ref().map(QueueFlags::on);
        if is_idle()
            && let Ok(mut ready) = self.eventfd.readable().await
        {
            // The descriptor is never read: each signal is an edge, and edges are all that is listened to.
            ready.clear_ready();
        }
    }
}

/// The word in the ring's shared memory that turns its eventfd on and off.
struct QueueFlags {
    head: NonNull<u8>,
    offset: usize,
}

impl QueueFlags {
    /// Finds the word; `None` where the kernel lays its rings out in another way than expected.
    fn of(ring: &mut IoUring) -> Option<QueueFlags> {
        let offset = flags_offset().ok().filter(|offset| offset % 4 == 0 && offset + 4 <= HEAD)?;
        // SAFETY: the ring's descriptor is open for as long as the ring is borrowed.
        let fd = unsafe { BorrowedFd::borrow_raw(ring.as_raw_fd()) };
        let head = map_head(fd).ok()?;
        let flags = QueueFlags { head, offset };
        // Believed only if the ring sees through its own mapping what is written through this one.
        let before = ring.completion().eventfd_disabled();
        flags.word().fetch_or(EVENTFD_DISABLED, Ordering::SeqCst);
        (!before && ring.completion().eventfd_disabled()).then_some(flags)
    }

    fn word(&self) -> &AtomicU32 {
        // SAFETY: the mapping is HEAD bytes long and stays until `self` is dropped; `of` checked that offset plus the
        // word lie within it and that the word is aligned.
        let word = unsafe { self.head.add(self.offset) };
        // SAFETY: as above; the kernel and this process read and write the word only as a whole.
        unsafe { AtomicU32::from_ptr(word.cast().as_ptr()) }
    }

    /// Has the kernel signal until the guard is dropped.
    fn on(&self) -> impl Drop {
        struct On<'a>(&'a QueueFlags);
        impl Drop for On<'_> {
            fn drop(&mut self) {
                self.0.word().fetch_or(EVENTFD_DISABLED, Ordering::Relaxed);
            }
        }
        self.word().fetch_and(!EVENTFD_DISABLED, Ordering::SeqCst);
        // What completed before the kernel could see the flag has to be seen by who looks from here on.
        fence(Ordering::SeqCst);
        On(self)
    }
}

impl Drop for QueueFlags {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `of`, and the only references into it borrowed `self`.
        let _ = unsafe { munmap(self.head.as_ptr().cast(), HEAD) };
    }
}

/// Where the kernel keeps the flags in a completion queue, learnt from a ring that is made for the question.
fn flags_offset() -> io::Result<usize> {
    let mut parameters = io_uring_params::default();
    // SAFETY: the parameters are valid, and the ring is closed again without being used.
    let ring = unsafe { io_uring_setup(1, &mut parameters) }?;
    drop(ring);
    Ok(parameters.cq_off.flags as usize)
}

/// Maps the head of a ring's completion queue.
fn map_head(ring: BorrowedFd<'_>) -> io::Result<NonNull<u8>> {
    let rights = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new mapping at an address of the kernel's choice overlaps nothing.
    let head = unsafe { mmap(std::ptr::null_mut(), HEAD, rights, MapFlags::SHARED, ring, COMPLETION_QUEUE) }?;
    NonNull::new(head.cast()).ok_or_else(|| io::Error::other("a mapping at address 0"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_eventfd_is_on_only_while_the_guard_lives() {
        let mut ring = IoUring::new(2).expect("the tests run where io_uring is allowed");
        let flags = QueueFlags::of(&mut ring).expect("the kernel lays out its rings as expected");
        assert!(ring.completion().eventfd_disabled());
        let on = flags.on();
        assert!(!ring.completion().eventfd_disabled());
        drop(on);
        assert!(ring.completion().eventfd_disabled());
    }
}
