//! Passwords by reference: the configuration says where one is, never what it is.

use std::fmt;
use std::path::{Path, PathBuf};

use certs::file::Content;
use serde::Deserialize;
use zeroize::Zeroizing;

/// `file:<path>` or `env:<NAME>`. What is found there is the password, a line end after it ignored.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum SecretRef {
    File(PathBuf),
    Env(String),
}

/// A password. Never printed; wiped from memory when dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

/// Why there is no password.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    #[error("a password is written as file:<path> or env:<NAME>, never inline")]
    Reference,
    #[error(transparent)]
    File(#[from] certs::CertError),
    #[error("the password at {0} is no text")]
    NotText(String),
    #[error("the environment has no readable variable {0}")]
    Env(String),
    #[error("the password at {0} is empty")]
    Empty(String),
}

impl TryFrom<String> for SecretRef {
    type Error = SecretError;

    fn try_from(text: String) -> Result<Self, SecretError> {
        match text.split_once(':') {
            Some(("file", path)) if !path.is_empty() => Ok(SecretRef::File(path.into())),
            Some(("env", name)) if !name.is_empty() => Ok(SecretRef::Env(name.to_owned())),
            _ => Err(SecretError::Reference),
        }
    }
}

impl SecretRef {
    /// The same, a relative path counted from `folder`.
    #[must_use]
    pub fn relative_to(&self, folder: &Path) -> SecretRef {
        match self {
            SecretRef::File(path) => SecretRef::File(folder.join(path)),
            SecretRef::Env(name) => SecretRef::Env(name.clone()),
        }
    }

    /// Reads the password.
    ///
    /// # Errors
    /// Names the place, never what is there.
    pub fn load(&self) -> Result<Secret, SecretError> {
        let (text, place) = match self {
            SecretRef::File(path) => (certs::file::read(path, Content::Secret)?, path.display().to_string()),
            SecretRef::Env(name) => {
                let text = std::env::var(name).map_err(|_| SecretError::Env(name.clone()))?;
                (Zeroizing::new(text.into_bytes()), name.clone())
            }
        };
        let text = std::str::from_utf8(&text).map_err(|_| SecretError::NotText(place.clone()))?;
        let secret = text.trim_end_matches(['\r', '\n']);
        if secret.is_empty() {
            Err(SecretError::Empty(place))
        } else {
            Ok(Secret(Zeroizing::new(secret.to_owned())))
        }
    }
}

impl Secret {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn found_where_the_reference_says_and_never_printed() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str, mode: u32| {
            std::fs::write(dir.path().join(name), text).unwrap();
            std::fs::set_permissions(dir.path().join(name), Permissions::from_mode(mode)).unwrap();
        };
        write("password", "hunter2\n", 0o440);
        write("empty", "\n", 0o600);
        write("open", "hunter2\n", 0o644);
        let load = |text: &str| {
            SecretRef::try_from(text.to_owned()).and_then(|written| written.relative_to(dir.path()).load())
        };
        let secret = load("file:password").unwrap();
        assert_eq!((secret.as_str(), format!("{secret:?}").as_str()), ("hunter2", "Secret(…)"));
        for (text, says) in [
            ("hunter2", "never inline"),
            ("file:", "never inline"),
            ("file:missing", "missing"),
            ("file:empty", "empty"),
            ("file:open", "defaultMode: 0440"),
            ("env:TORANA_NO_SUCH_VARIABLE", "TORANA_NO_SUCH_VARIABLE"),
        ] {
            assert!(load(text).unwrap_err().to_string().contains(says), "{text}");
        }
    }
}
