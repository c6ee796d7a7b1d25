//! The files of a look.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::records::File;

/// The files of a look. Looks that found the same files share them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Files(Arc<Vec<Arc<File>>>);

impl Files {
    /// Adds one.
    pub fn push(&mut self, file: File) {
        Arc::make_mut(&mut self.0).push(Arc::new(file));
    }

    /// Adds some.
    pub fn extend(&mut self, files: impl IntoIterator<Item = File>) {
        let mut files = files.into_iter().map(Arc::new).peekable();
        if files.peek().is_some() {
            Arc::make_mut(&mut self.0).extend(files);
        }
    }

    /// Moves all of `other` here.
    pub(crate) fn append(&mut self, other: &mut Files) {
        let other = std::mem::take(other);
        if self.is_empty() {
            *self = other;
        } else {
            Arc::make_mut(&mut self.0).extend(other.iter().cloned());
        }
    }

    /// Whether they are those of one look, so that comparing them finds nothing.
    pub(crate) fn is_shared_with(&self, other: &Files) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl From<Vec<Arc<File>>> for Files {
    fn from(files: Vec<Arc<File>>) -> Self {
        Files(Arc::new(files))
    }
}

impl Deref for Files {
    type Target = Vec<Arc<File>>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

/// A change copies the list, but not the files.
impl DerefMut for Files {
    fn deref_mut(&mut self) -> &mut Self::Target {
        Arc::make_mut(&mut self.0)
    }
}

impl Serialize for Files {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_seq(self.iter().map(|file| &**file))
    }
}

impl<'de> Deserialize<'de> for Files {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        Ok(Vec::<File>::deserialize(d)?.into_iter().map(Arc::new).collect::<Vec<_>>().into())
    }
}
