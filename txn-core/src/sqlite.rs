//! SQLite files: durable, one connection that writes and a few that read. The store and the embedded bus are built
//! on it.
//!
//! SQLite works on the thread that calls it. Whoever writes does so on a thread of his own; whoever reads borrows
//! one for the length of a question. An async driver would take each statement to a thread and its rows back: that
//! cost more than the statements.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags, TransactionBehavior};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::store::StoreError;

/// How long a statement waits for another process that holds the file.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a question waits for a connection.
const READER_TIMEOUT: Duration = Duration::from_secs(5);
/// Different statements that stay prepared on a connection.
const PREPARED: usize = 64;

/// A version and the statements that lead to it from the one before. Forward only: an applied one never changes, a
/// new one is added.
pub(crate) type Migration = (i64, &'static str);

/// The writing connection of a file whose tables are up to date; the file is made if need be.
///
/// # Errors
/// [`StoreError::Engine`] if the file can't be opened, or was made by something newer.
pub(crate) fn open(file: &Path, migrations: &[Migration]) -> Result<Connection, StoreError> {
    let mut db = connect(file, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE)?;
    migrate(&mut db, migrations)?;
    Ok(db)
}

/// Closes the writing connection, which folds the WAL, with all that was erased, into the file.
pub(crate) fn close(db: Connection) -> Result<(), StoreError> {
    // Statements that are still prepared would keep it open.
    db.flush_prepared_statement_cache();
    db.close().map_err(|(_, error)| error.into())
}

pub(crate) fn connect(file: &Path, flags: OpenFlags) -> Result<Connection, StoreError> {
    let db = Connection::open_with_flags(file, flags | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    db.busy_timeout(BUSY_TIMEOUT)?;
    if flags.contains(OpenFlags::SQLITE_OPEN_READ_WRITE) {
        db.pragma_update(None, "journal_mode", "WAL")?;
        db.pragma_update(None, "synchronous", "FULL")?;
        db.pragma_update(None, "foreign_keys", "ON")?;
        // What is erased (PIN blocks) is overwritten, not only unlinked; in the WAL it lives on until the WAL starts
        // over or the store is closed.
        db.pragma_update(None, "secure_delete", "ON")?;
        db.pragma_update(None, "journal_size_limit", 64 * 1024 * 1024)?;
        // Negative: kibibytes. Keys are random, so what a batch touches is spread over the table.
        db.pragma_update(None, "cache_size", -16 * 1024)?;
    }
    db.set_prepared_statement_cache_capacity(PREPARED);
    Ok(db)
}

fn migrate(db: &mut Connection, migrations: &[Migration]) -> Result<(), StoreError> {
    let txn = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let user_version: i64 = txn.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let version = if user_version == 0 { version_before(&txn)? } else { user_version };
    let newest = migrations.iter().map(|(version, _)| *version).max().unwrap_or(0);
    if version > newest {
        let text =
            format!("the file has tables of version {version}, and this program knows {newest} at most");
        return Err(StoreError::Engine(text));
    }
    for (to, sql) in migrations.iter().filter(|(to, _)| *to > version) {
        txn.execute_batch(sql).map_err(|error| StoreError::Engine(format!("migration {to}: {error}")))?;
    }
    if version < newest || user_version != version {
        txn.pragma_update(None, "user_version", newest)?;
    }
    Ok(txn.commit()?)
}

/// Files of the first releases count their migrations in a table of their driver's.
fn version_before(db: &Connection) -> Result<i64, StoreError> {
    if db.table_exists(None, "_sqlx_migrations")? {
        let sql = "SELECT coalesce(max(version), 0) FROM _sqlx_migrations WHERE success";
        return Ok(db.query_row(sql, [], |row| row.get(0))?);
    }
    Ok(0)
}

/// Connections that read, each opened when it is first wanted.
#[derive(Debug, Clone)]
pub(crate) struct Readers(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    file: PathBuf,
    idle: Mutex<Vec<Connection>>,
    places: Arc<Semaphore>,
    most: u32,
}

impl Readers {
    /// At most so many at once.
    pub(crate) fn of(file: &Path, most: u32) -> Readers {
        let places = Arc::new(Semaphore::new(most as usize));
        Readers(Arc::new(Inner { file: file.to_owned(), idle: Mutex::default(), places, most }))
    }

    /// Asks a question on a thread that may wait for the disk.
    ///
    /// # Errors
    /// Those of the question; [`StoreError::Overloaded`] when every connection is busy for long.
    pub(crate) async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let place = timeout(READER_TIMEOUT, self.0.places.clone().acquire_owned()).await;
        let place = place.map_err(|_| StoreError::Overloaded)?.map_err(|_| StoreError::Closed)?;
        let inner = Arc::clone(&self.0);
        let asked = tokio::task::spawn_blocking(move || {
            // Held by the question and not by who asked it, who may go away.
            let _place = place;
            let db = inner.idle().pop();
            let db = match db {
                Some(db) => db,
                None => connect(&inner.file, OpenFlags::SQLITE_OPEN_READ_ONLY)?,
            };
            let answer = question(&db);
            inner.idle().push(db);
            answer
        });
        // It is cancelled only when the runtime goes away; then nobody hears this.
        asked.await.map_err(|error| StoreError::Engine(error.to_string()))?
    }

    /// Waits for questions that are being asked, and closes every connection.
    pub(crate) async fn close(&self) {
        // Each question holds a place, and nobody else closes them: waiting for all of them ends.
        let all = self.0.places.acquire_many(self.0.most).await;
        self.0.places.close();
        self.0.idle().clear();
        drop(all);
    }
}

impl Inner {
    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Connection>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            // Somebody else has held the file for longer than anybody should.
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
                StoreError::Unavailable(error.to_string())
            }
            _ => StoreError::Engine(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Migration = (1, "CREATE TABLE one (a INTEGER) STRICT");
    const TWO: Migration = (2, "CREATE TABLE two (a INTEGER) STRICT; CREATE INDEX of_two ON two (a)");

    fn tables(db: &Connection) -> Vec<String> {
        let mut names =
            db.prepare("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name").unwrap();
        names.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
    }

    #[test]
    fn files_are_brought_up_to_date_step_by_step_and_never_back() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.db");
        close(open(&file, &[ONE]).unwrap()).unwrap();
        let db = open(&file, &[ONE, TWO]).unwrap();
        assert_eq!(tables(&db), ["one", "two"]);
        close(db).unwrap();
        close(open(&file, &[ONE, TWO]).unwrap()).unwrap();
        let error = open(&file, &[ONE]).unwrap_err().to_string();
        assert!(error.contains("version 2") && error.contains("knows 1"), "{error}");
    }

    #[test]
    fn a_file_of_the_first_releases_goes_on_where_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.db");
        let before =
            connect(&file, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE).unwrap();
        let theirs = "CREATE TABLE _sqlx_migrations (version BIGINT PRIMARY KEY, success BOOLEAN NOT NULL);
            INSERT INTO _sqlx_migrations VALUES (1, true)";
        before.execute_batch(&format!("{}; {theirs}", ONE.1)).unwrap();
        close(before).unwrap();
        let db = open(&file, &[ONE, TWO]).unwrap();
        assert_eq!(tables(&db), ["_sqlx_migrations", "one", "two"]);
    }

    #[test]
    fn a_step_that_fails_leaves_the_file_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.db");
        close(open(&file, &[ONE]).unwrap()).unwrap();
        let broken = (3, "CREATE TABLE three (a INTEGER) STRICT; CREATE TABLE one (a INTEGER) STRICT");
        let error = open(&file, &[ONE, TWO, broken]).unwrap_err().to_string();
        assert!(error.contains("migration 3"), "{error}");
        let db = open(&file, &[ONE]).unwrap();
        assert_eq!(tables(&db), ["one"]);
    }

    #[tokio::test]
    async fn readers_do_not_write_and_close_behind_the_last_question() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.db");
        let _writer = open(&file, &[ONE]).unwrap();
        let readers = Readers::of(&file, 2);
        let write = readers.ask(|db| Ok(db.execute("INSERT INTO one VALUES (1)", [])?)).await.unwrap_err();
        assert!(write.to_string().contains("readonly"), "{write}");
        let asking = readers.clone();
        let slow = tokio::spawn(async move {
            let question = |db: &Connection| {
                std::thread::sleep(Duration::from_millis(50));
                Ok(db.query_row("SELECT count(*) FROM one", [], |row| row.get::<_, i64>(0))?)
            };
            asking.ask(question).await
        });
        while readers.0.places.available_permits() == 2 {
            tokio::task::yield_now().await;
        }
        // Who asked is gone; the question is still being asked.
        let asking = readers.clone();
        let gone = tokio::spawn(async move {
            let question = |_: &Connection| {
                std::thread::sleep(Duration::from_millis(100));
                Ok(())
            };
            asking.ask(question).await
        });
        while readers.0.places.available_permits() == 1 {
            tokio::task::yield_now().await;
        }
        gone.abort();
        assert!(gone.await.unwrap_err().is_cancelled());
        readers.close().await;
        assert!(readers.0.idle().is_empty());
        assert_eq!(slow.await.unwrap().unwrap(), 0);
        assert!(matches!(readers.ask(|_| Ok(())).await, Err(StoreError::Closed)));
    }
}
