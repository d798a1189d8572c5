//! The engines, behind what a store needs of them.

use std::{error::Error, path::Path};

use redb::ReadableDatabase;

type Outcome<T> = Result<T, Box<dyn Error>>;
pub(crate) type Pair = ([u8; 16], Vec<u8>);

/// What a store on disk asks of an engine.
pub(crate) trait Engine {
    /// Reads one record, which exists, to its last byte.
    fn read(&self, key: &[u8]) -> Outcome<()>;
    /// Reads up to `count` records from `key` on, in order.
    fn scan(&self, key: &[u8], count: usize) -> Outcome<()>;
    /// Writes a batch: whole or not at all, and not necessarily on disk.
    fn write(&self, batch: Vec<Pair>) -> Outcome<()>;
    /// Brings all written so far to disk.
    fn sync(&self) -> Outcome<()>;
}

/// Opens an engine by its name, in a directory of its own, with a cache of its own.
pub(crate) fn open(name: &str, directory: &Path, cache_bytes: u64) -> Outcome<Box<dyn Engine>> {
    Ok(match name {
        "sled" => {
            let config = sled::Config::new()
                .path(directory.join("sled"))
                .cache_capacity(cache_bytes)
                .segment_size(8 << 20);
            Box::new(Sled(config.open()?))
        }
        "fjall" => {
            let database = fjall::Database::builder(directory.join("fjall"))
                .cache_size(cache_bytes)
                .worker_threads(1)
                .max_journaling_size(64 << 20)
                .open()?;
            let keyspace = database.keyspace("records", || {
                fjall::KeyspaceCreateOptions::default().max_memtable_size(cache_bytes / 4)
            })?;
            Box::new(Fjall { database, keyspace })
        }
        "redb" => {
            std::fs::create_dir_all(directory.join("redb"))?;
            let database = redb::Builder::new()
                .set_cache_size(cache_bytes as usize)
                .create(directory.join("redb/records"))?;
            Box::new(Redb(database))
        }
        other => return Err(format!("`{other}` is no engine: sled, fjall or redb").into()),
    })
}

/// Touches what was read, so that reading it is part of the figure.
fn consume(value: &[u8]) {
    assert_eq!(std::hint::black_box(value).len(), super::VALUE_BYTES);
}

struct Sled(sled::Db);

impl Engine for Sled {
    fn read(&self, key: &[u8]) -> Outcome<()> {
        consume(&self.0.get(key)?.ok_or("a record is missing")?);
        Ok(())
    }

    fn scan(&self, key: &[u8], count: usize) -> Outcome<()> {
        for pair in self.0.range(key..).take(count) {
            consume(&pair?.1);
        }
        Ok(())
    }

    fn write(&self, batch: Vec<Pair>) -> Outcome<()> {
        let mut writes = sled::Batch::default();
        batch.into_iter().for_each(|(key, value)| writes.insert(&key, value));
        Ok(self.0.apply_batch(writes)?)
    }

    fn sync(&self) -> Outcome<()> {
        self.0.flush()?;
        Ok(())
    }
}

struct Fjall {
    database: fjall::Database,
    keyspace: fjall::Keyspace,
}

impl Engine for Fjall {
    fn read(&self, key: &[u8]) -> Outcome<()> {
        consume(&self.keyspace.get(key)?.ok_or("a record is missing")?);
        Ok(())
    }

    fn scan(&self, key: &[u8], count: usize) -> Outcome<()> {
        for guard in self.keyspace.range(key..).take(count) {
            consume(&guard.value()?);
        }
        Ok(())
    }

    fn write(&self, batch: Vec<Pair>) -> Outcome<()> {
        let mut writes = self.database.batch();
        for (key, value) in batch {
            writes.insert(&self.keyspace, key, value);
        }
        Ok(writes.commit()?)
    }

    fn sync(&self) -> Outcome<()> {
        Ok(self.database.persist(fjall::PersistMode::SyncData)?)
    }
}

struct Redb(redb::Database);

const TABLE: redb::TableDefinition<'static, &[u8], &[u8]> = redb::TableDefinition::new("records");

impl Engine for Redb {
    fn read(&self, key: &[u8]) -> Outcome<()> {
        let table = self.0.begin_read()?.open_table(TABLE)?;
        consume(redb::ReadableTable::get(&table, key)?.ok_or("a record is missing")?.value());
        Ok(())
    }

    fn scan(&self, key: &[u8], count: usize) -> Outcome<()> {
        let table = self.0.begin_read()?.open_table(TABLE)?;
        for pair in redb::ReadableTable::range(&table, key..)?.take(count) {
            consume(pair?.1.value());
        }
        Ok(())
    }

    fn write(&self, batch: Vec<Pair>) -> Outcome<()> {
        let mut transaction = self.0.begin_write()?;
        transaction.set_durability(redb::Durability::None)?;
        {
            let mut table = transaction.open_table(TABLE)?;
            for (key, value) in &batch {
                table.insert(key.as_slice(), value.as_slice())?;
            }
        }
        Ok(transaction.commit()?)
    }

    fn sync(&self) -> Outcome<()> {
        Ok(self.0.begin_write()?.commit()?)
    }
}
