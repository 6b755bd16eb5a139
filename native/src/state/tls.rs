//! TLS over the client's sockets, by rustls with ring. A session stands where the socket stood: it reads and writes plain
//! bytes, and moves what that takes over the descriptor it is given.

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore};

use crate::load::sys;

/// Whom to trust, and what to show.
#[derive(Clone, Debug)]
pub struct Tls(Arc<ClientConfig>);

impl Tls {
    /// All PEM. `identity`: a certificate chain and its key, for servers that ask for one.
    pub fn new(authorities: &[u8], identity: Option<(&[u8], &[u8])>) -> Result<Self, String> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(authorities) {
            let certificate = certificate.map_err(|error| format!("the authorities are not PEM: {error}"))?;
            roots.add(certificate).map_err(|error| format!("an authority that is none: {error}"))?;
        }
        if roots.is_empty() {
            return Err("no certificate among the authorities".to_owned());
        }
        let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .with_root_certificates(roots);
        let config = match identity {
            None => builder.with_no_client_auth(),
            Some((chain, key)) => {
                let chain = CertificateDer::pem_slice_iter(chain)
                    .collect::<Result<Vec<_>, _>>()
                    .map_err(|error| format!("the certificate is not PEM: {error}"))?;
                let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| format!("the key is not PEM: {error}"))?;
                builder.with_client_auth_cert(chain, key).map_err(|error| format!("certificate and key: {error}"))?
            }
        };
        Ok(Self(Arc::new(config)))
    }

    /// A session with the server of that name or address, which its certificate must be for.
    pub fn session(&self, host: &str) -> Result<Session, String> {
        let name = ServerName::try_from(host.to_owned()).map_err(|error| format!("{host}: {error}"))?;
        let connection = ClientConnection::new(Arc::clone(&self.0), name).map_err(|error| error.to_string())?;
        Ok(Session(Box::new(connection)))
    }
}

pub struct Session(Box<ClientConnection>);

struct Raw<'a>(&'a OwnedFd);

impl Read for Raw<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        sys::receive(self.0, buffer)
    }
}

impl Write for Raw<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        sys::send(self.0, bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Session {
    /// As `recv` does. What is not TLS, or not from whom it must be, is [`ErrorKind::InvalidData`].
    pub fn read(&mut self, fd: &OwnedFd, room: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.0.reader().read(room) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                // Gone without a farewell: as a socket that is closed.
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(0),
                other => return other,
            }
            if self.0.read_tls(&mut Raw(fd))? == 0 {
                return Ok(0);
            }
            let processed = self.0.process_new_packets();
            // The alert that says why, or the next step of the handshake.
            let flushed = self.flush(fd);
            processed.map_err(|error| io::Error::new(ErrorKind::InvalidData, format!("TLS: {error}")))?;
            flushed.or_else(unless_full)?;
        }
    }

    /// As `send` does; what it takes may not all be on its way until [`Session::flush`] says so.
    pub fn write(&mut self, fd: &OwnedFd, bytes: &[u8]) -> io::Result<usize> {
        self.flush(fd)?;
        let count = self.0.writer().write(bytes)?;
        if count == 0 {
            // The handshake is not over, and the buffer full.
            return Err(ErrorKind::WouldBlock.into());
        }
        self.flush(fd).or_else(unless_full)?;
        Ok(count)
    }

    /// [`ErrorKind::WouldBlock`]: something is left.
    pub fn flush(&mut self, fd: &OwnedFd) -> io::Result<()> {
        while self.0.wants_write() {
            self.0.write_tls(&mut Raw(fd))?;
        }
        Ok(())
    }
}

fn unless_full(error: io::Error) -> io::Result<()> {
    if error.kind() == ErrorKind::WouldBlock { Ok(()) } else { Err(error) }
}
