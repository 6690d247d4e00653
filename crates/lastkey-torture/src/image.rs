//! The bytes of a file, cheap to copy: pages are shared until one of the copies changes them.

use std::sync::Arc;

/// What a file system writes at once, in bytes.
pub const PAGE: usize = 4096;
/// What a disk writes at once, in bytes.
pub const SECTOR: usize = 512;

type Page = [u8; PAGE];

/// A file's bytes. A page that was never written is not there, and reads as zeros.
#[derive(Clone, Debug, Default)]
pub struct Image {
    pages: Vec<Option<Arc<Page>>>,
    length: usize,
}

impl Image {
    /// In bytes.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Reads as much as there is from `at`, and says how much that was.
    pub fn read(&self, out: &mut [u8], at: usize) -> usize {
        let available = self.length.saturating_sub(at).min(out.len());
        let mut done = 0;
        while done < available {
            let (page, from) = ((at + done) / PAGE, (at + done) % PAGE);
            let n = (PAGE - from).min(available - done);
            let target = &mut out[done..done + n];
            match self.pages.get(page).and_then(Option::as_ref) {
                Some(bytes) => target.copy_from_slice(&bytes[from..from + n]),
                None => target.fill(0),
            }
            done += n;
        }
        available
    }

    /// All of it.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.length];
        self.read(&mut bytes, 0);
        bytes
    }

    /// Writes; what lies between the end and `at` reads as zeros.
    pub fn write(&mut self, bytes: &[u8], at: usize) {
        self.length = self.length.max(at + bytes.len());
        self.pages.resize(self.length.div_ceil(PAGE).max(self.pages.len()), None);
        let mut done = 0;
        while done < bytes.len() {
            let (page, to) = ((at + done) / PAGE, (at + done) % PAGE);
            let n = (PAGE - to).min(bytes.len() - done);
            let page = self.pages[page].get_or_insert_with(|| Arc::new([0; PAGE]));
            Arc::make_mut(page)[to..to + n].copy_from_slice(&bytes[done..done + n]);
            done += n;
        }
    }

    /// Cuts it, or lengthens it by zeros.
    pub fn set_len(&mut self, length: usize) {
        if length < self.length {
            self.pages.truncate(length.div_ceil(PAGE));
            let rest = length % PAGE;
            if rest > 0
                && let Some(Some(last)) = self.pages.get_mut(length / PAGE)
            {
                Arc::make_mut(last)[rest..].fill(0);
            }
        }
        self.length = length;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Random;

    #[test]
    fn an_image_is_a_vector_of_bytes() {
        let mut random = Random::new(7);
        let (mut image, mut model) = (Image::default(), Vec::new());
        for _ in 0..500 {
            let at = random.below(5 * PAGE);
            if random.percent(20) {
                image.set_len(at);
                model.resize(at, 0);
            } else {
                let bytes = vec![random.next() as u8; random.below(2 * PAGE) + 1];
                if model.len() < at + bytes.len() {
                    model.resize(at + bytes.len(), 0);
                }
                model[at..at + bytes.len()].copy_from_slice(&bytes);
                image.write(&bytes, at);
            }
            assert_eq!(image.bytes(), model);
            let copy = image.clone();
            image.write(&[1], 0);
            assert_eq!(copy.bytes(), model, "a copy stays as it is");
            image = copy;
        }
    }
}
