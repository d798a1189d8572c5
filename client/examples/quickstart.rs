//! Writes, reads and removes a few records: `cargo run -p stateside-client --example quickstart`
//! beside a running node. The endpoint is the first argument, 127.0.0.1:7400 without one.

use std::error::Error;

use stateside_client::{Client, Options, ReadOptions, Reason, Removal, Upsert, WriteOptions};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let endpoint = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:7400".to_owned());
    let client = Client::connect(&endpoint, Options::default()).await?;
    let (write, read) = (WriteOptions::default(), ReadOptions::default());

    // A batch: entries that share a partition are written atomically, under one version.
    let entries = [Upsert::new("user/1", "Ada"), Upsert::new("user/2", "Grace")];
    for written in client.upsert(&entries, &write).await?.all()? {
        println!("written: version {} at {} ms", written.version, written.timestamp.millis());
    }

    // Records come back in the order of the keys, `None` where there is none.
    let keys = ["user/1", "user/2", "user/3"];
    let records = client.get(&keys, &read).await?.all()?;
    for (key, record) in keys.iter().zip(&records) {
        match record {
            Some(record) => println!("{key}: {}", String::from_utf8_lossy(&record.value)),
            None => println!("{key}: no record"),
        }
    }

    // Compare and set: write only what nobody has changed since it was read.
    let seen = records[0].as_ref().ok_or("user/1 is gone")?.version;
    client.upsert_one(Upsert::new("user/1", "Ada L.").if_version(seen), &write).await?;
    match client.upsert_one(Upsert::new("user/1", "Ada K.").if_version(seen), &write).await {
        Err(error) if error.reason() == Some(Reason::ConditionFailed) => {
            println!("conflict: {error}")
        }
        other => println!("unexpected: {other:?}"),
    }

    // Related keys under one routing key share a partition, so they can change together.
    let cart =
        WriteOptions { routing_key: Some(b"user/1".to_vec()), atomic: true, ..write.clone() };
    let entries = [Upsert::new("cart/1/milk", "2"), Upsert::new("cart/1/total", "3.10")];
    client.upsert(&entries, &cart).await?.all()?;
    client
        .remove(&[Removal::new("cart/1/milk"), Removal::new("cart/1/total")], &cart)
        .await?
        .all()?;

    client.remove(&[Removal::new("user/1"), Removal::new("user/2")], &write).await?.all()?;
    Ok(())
}
