//! SHA-256 of what streams by.

use std::io::{self, Read};

use lcow_driver::Cancel;
use lcow_layer::digest::{Digest, Hasher};

use crate::ImageError;

/// Passes a blob through, and holds it to its descriptor if it has one: at the end its digest and its length are right, or
/// the read fails. A blob that is longer than promised fails as soon as it is.
///
/// The error itself is kept for [`finish`](Watched::finish): who reads may be a pipeline that only knows that there was one.
pub(crate) struct Watched<'a> {
    inner: &'a mut (dyn Read + Send),
    input: String,
    expected: Option<(Digest, u64)>,
    read: u64,
    hasher: Option<Hasher>,
    on_read: &'a (dyn Fn(u64) + Sync),
    failed: Option<ImageError>,
    at_end: bool,
}

impl<'a> Watched<'a> {
    pub(crate) fn new(
        inner: &'a mut (dyn Read + Send),
        input: &str,
        expected: Option<(Digest, u64)>,
        on_read: &'a (dyn Fn(u64) + Sync),
    ) -> Self {
        Self {
            inner,
            input: input.to_owned(),
            hasher: expected.map(|_| Hasher::new()),
            expected,
            read: 0,
            on_read,
            failed: None,
            at_end: false,
        }
    }

    /// Reads what is left of a blob with a descriptor, and gives the verdict on the whole.
    pub(crate) fn finish(&mut self, cancel: &Cancel) -> Result<(), ImageError> {
        let mut buffer = vec![0; if self.at_end { 0 } else { 64 << 10 }];
        while self.expected.is_some() && !self.at_end && self.failed.is_none() {
            if cancel.is_cancelled() {
                return Err(ImageError::Cancelled);
            }
            if let Err(source) = self.read(&mut buffer)
                && self.failed.is_none()
                && source.kind() != io::ErrorKind::Interrupted
            {
                let input = self.input.clone();
                return Err(ImageError::Input {
                    input,
                    offset: self.read,
                    source,
                });
            }
        }
        match self.failed.take() {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    fn check(&mut self) -> Result<(), ImageError> {
        let Some((digest, size)) = self.expected else {
            return Ok(());
        };
        if self.read > size || self.at_end && self.read != size {
            return Err(ImageError::BlobSize {
                input: self.input.clone(),
                digest,
                expected: size,
                actual: self.read,
            });
        }
        if self.at_end
            && let Some(hasher) = self.hasher.take()
        {
            let actual = hasher.finish();
            if actual != digest {
                return Err(ImageError::BlobDigest {
                    input: self.input.clone(),
                    expected: digest,
                    actual,
                });
            }
        }
        Ok(())
    }
}

impl Read for Watched<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let fail = || io::Error::other("the input failed");
        if self.failed.is_some() {
            return Err(fail());
        }
        if buf.is_empty() {
            return Ok(0);
        }
        let n = match self.inner.read(buf) {
            Ok(n) => n,
            Err(error) => match error.downcast::<ImageError>() {
                Ok(error) => {
                    self.failed = Some(error);
                    return Err(fail());
                }
                Err(error) => return Err(error),
            },
        };
        self.read += n as u64;
        self.at_end = n == 0;
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&buf[..n]);
        }
        (self.on_read)(n as u64);
        if let Err(error) = self.check() {
            self.failed = Some(error);
            return Err(fail());
        }
        Ok(n)
    }
}

/// Holds a blob in memory to its descriptor.
pub(crate) fn verify(
    input: &str,
    digest: &Digest,
    size: u64,
    bytes: &[u8],
) -> Result<(), ImageError> {
    let mut rest = bytes;
    Watched::new(&mut rest, input, Some((*digest, size)), &|_| {}).finish(&Cancel::new())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holds_blobs_to_their_descriptors() {
        let digest = Digest::of(b"hello");
        verify("x", &digest, 5, b"hello").unwrap();
        assert!(matches!(
            verify("x", &digest, 5, b"jello"),
            Err(ImageError::BlobDigest { .. })
        ));
        for (size, actual) in [(4, 5), (6, 5)] {
            match verify("x", &digest, size, b"hello").unwrap_err() {
                ImageError::BlobSize {
                    expected,
                    actual: a,
                    ..
                } => {
                    assert_eq!((expected, a), (size, actual));
                }
                other => panic!("{other}"),
            }
        }
    }

    #[test]
    fn what_the_reader_left_is_read_and_checked() {
        let digest = Digest::of(b"hello");
        let mut bytes = &b"jello"[..];
        let mut watched = Watched::new(&mut bytes, "x", Some((digest, 5)), &|_| {});
        let mut some = [0; 2];
        watched.read_exact(&mut some).unwrap();
        assert!(matches!(
            watched.finish(&Cancel::new()),
            Err(ImageError::BlobDigest { .. })
        ));
    }
}
