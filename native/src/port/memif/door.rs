//! A listening socket of this process, and the interfaces behind it: ports with one path and an id each. Whichever port is
//! serviced first accepts; it hands a client that asks for another's id over to that one. The last to leave closes.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::control::Message;
use super::socket::{Control, Listener};
use crate::port::waiting::Bell;

static DOORS: Mutex<Vec<Weak<Door>>> = Mutex::new(Vec::new());
/// Clients that wait to be taken over by one port.
const MAX_VISITORS: usize = 8;

struct Door {
    path: PathBuf,
    listener: Listener,
    interfaces: Mutex<HashMap<u32, Interface>>,
}

struct Interface {
    most_queues: u16,
    /// With the INIT they have sent.
    visitors: Vec<(Control, Message)>,
    bell: Arc<Bell>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One port's place behind its door.
pub struct Place {
    /// Until it is dropped.
    door: Option<Arc<Door>>,
    id: u32,
    bell: Arc<Bell>,
}

impl Place {
    /// `AddrInUse`: another process listens at `path`, or another port of this one has the id.
    pub fn take(path: &Path, id: u32, most_queues: u16) -> io::Result<Self> {
        let bell = Arc::new(Bell::new()?);
        let mut doors = locked(&DOORS);
        doors.retain(|door| door.strong_count() > 0);
        let door = match doors.iter().filter_map(Weak::upgrade).find(|door| door.path == path) {
            Some(door) => door,
            None => {
                let (path, listener) = (path.to_path_buf(), Listener::bind(path)?);
                let door = Arc::new(Door { path, listener, interfaces: Mutex::default() });
                doors.push(Arc::downgrade(&door));
                door
            }
        };
        let mut interfaces = locked(&door.interfaces);
        if interfaces.contains_key(&id) {
            let text = format!("{} is in use: id {id} is another port's of this process", path.display());
            return Err(io::Error::new(io::ErrorKind::AddrInUse, text));
        }
        interfaces.insert(id, Interface { most_queues, visitors: Vec::new(), bell: bell.clone() });
        drop(interfaces);
        Ok(Self { door: Some(door), id, bell })
    }

    fn door(&self) -> &Door {
        self.door.as_deref().expect("it is there until it is dropped")
    }

    pub fn listener(&self) -> BorrowedFd<'_> {
        self.door().listener.as_fd()
    }

    /// Rings when a visitor has come; only news count.
    pub fn bell(&self) -> &Bell {
        &self.bell
    }

    /// As [`Listener::accept`].
    pub fn accept(&self) -> io::Result<Option<Control>> {
        self.door().listener.accept()
    }

    /// What can be offered to a client before it has said which interface it wants.
    pub fn most_queues(&self) -> u16 {
        locked(&self.door().interfaces).values().map(|interface| interface.most_queues).max().unwrap_or(1)
    }

    /// Whether another port has that id.
    pub fn knows(&self, id: u32) -> bool {
        locked(&self.door().interfaces).contains_key(&id)
    }

    /// Gives a client and its INIT to the port with that id. The client comes back if there is none, or no place there.
    pub fn hand_over(&self, id: u32, control: Control, message: Message) -> Result<(), Control> {
        match locked(&self.door().interfaces).get_mut(&id) {
            Some(interface) if interface.visitors.len() < MAX_VISITORS => {
                interface.visitors.push((control, message));
                interface.bell.ring();
                Ok(())
            }
            _ => Err(control),
        }
    }

    /// Who was handed over to this port.
    pub fn visitors(&self) -> Vec<(Control, Message)> {
        let mut interfaces = locked(&self.door().interfaces);
        interfaces.get_mut(&self.id).map(|interface| std::mem::take(&mut interface.visitors)).unwrap_or_default()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Nobody may find the door, or the socket's file, while they go.
        let _doors = locked(&DOORS);
        let left = self.door.take().map(|door| locked(&door.interfaces).remove(&self.id));
        drop(left);
    }
}
