//! Changes of stores: by call, by file, refused, repeated, one at a time on a core.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_store_is_changed_by_call_and_by_file_and_stays_so_after_a_restart() {
    let machine = Machine::new(QUARTERS);
    let node = machine.start(Budget::unlimited()).await;
    assert!(node.cores.write(PartitionId(2), 5));
    let epoch = node.view.borrow().manifest.partitions[&PartitionId(2)].spec.epoch;
    let copied = node.change_store(2, StoreKind::Lsm).await.unwrap();
    assert_eq!(copied.records, 5);
    assert_eq!((node.store(2), node.records(2)), (StoreKind::Lsm, 5));
    node.settle().await;
    node.check(&machine);
    assert!(machine.registry().contains("store = \"lsm\""), "{}", machine.registry());
    let refused = node.change_store(2, StoreKind::Lsm).await.unwrap_err();
    assert_eq!(refused.reason, Reason::StoreUnchanged);
    let refused = node.change_store(9, StoreKind::Lsm).await.unwrap_err();
    assert_eq!(refused.reason, Reason::UnknownPartition);

    machine.write_registry(&machine.registry().replace("\"lsm\"", "\"memory-ordered\""));
    node.wait(|view| {
        let spec = &view.manifest.partitions[&PartitionId(2)].spec;
        spec.store == StoreKind::MemoryOrdered && view.pending.is_empty()
    })
    .await;
    node.check(&machine);
    drop(node);
    let node = machine.start(Budget::unlimited()).await;
    node.settle().await;
    node.check(&machine);
    assert_eq!((node.store(2), node.records(2)), (StoreKind::MemoryOrdered, 5));
    let spec = &node.view.borrow().manifest.partitions[&PartitionId(2)].spec.clone();
    assert_eq!(spec.epoch, epoch, "the content is the same");
}

#[tokio::test(start_paused = true)]
async fn a_change_of_store_that_fails_leaves_the_store_and_the_registry_as_they_were() {
    let machine = Machine::new(QUARTERS);
    let node = machine.start(Budget::unlimited()).await;
    let full = || Refusal::new(Reason::DiskFull, "no room");
    for step in ["copy", "close"] {
        node.cores.refuse_next(step, full());
        let refused = node.change_store(2, StoreKind::Lsm).await.unwrap_err();
        assert_eq!(refused.reason, Reason::DiskFull, "{step}");
        assert_eq!(node.store(2), StoreKind::Memory);
        assert_eq!(machine.registry(), QUARTERS, "{step}");
    }
    *node.manifest_fault.lock().unwrap() = vec![Failing::Full];
    let refused = node.change_store(2, StoreKind::Lsm).await.unwrap_err();
    assert_eq!(refused.reason, Reason::DiskFull);
    assert_eq!((node.store(2), machine.registry().as_str()), (StoreKind::Memory, QUARTERS));
    assert!(node.cores.log().last().unwrap().contains("keep 2"), "{:?}", node.cores.log());
    // Nothing of it is in the way.
    node.change_store(2, StoreKind::Lsm).await.unwrap();
    node.settle().await;
    node.check(&machine);
}

#[tokio::test(start_paused = true)]
async fn a_declared_change_of_store_that_fails_is_tried_again_in_sight_of_status() {
    let machine = Machine::new(QUARTERS);
    let node = machine.start(Budget::unlimited()).await;
    node.cores.refuse_next("copy", Refusal::new(Reason::MemoryFull, "no room"));
    machine.write_registry(&QUARTERS.replace("id = 2\n", "id = 2\nstore = \"sled\"\n"));
    let view = node.wait(|view| view.pending.iter().any(|line| line.contains("no room"))).await;
    assert!(view.pending[0].contains("tried again in"), "{:?}", view.pending);
    assert_eq!(node.store(2), StoreKind::Memory);
    node.wait(|view| view.pending.is_empty()).await;
    assert_eq!(node.store(2), StoreKind::Sled);
    let copies = node.cores.log().iter().filter(|line| line.contains("copy 2")).count();
    assert_eq!(copies, 2, "each attempt copies everything: {:?}", node.cores.log());
}

#[tokio::test(start_paused = true)]
async fn a_core_changes_one_store_at_a_time_and_nothing_else_touches_the_partition() {
    let machine = Machine::new(QUARTERS);
    let node = machine.start(Budget::unlimited()).await;
    node.cores.silence("copy");
    let (first, second) = (PartitionId(0), PartitionId(2));
    assert_eq!(node.cores.core_of(first), node.cores.core_of(second));
    let calls = async {
        tokio::join!(node.change_store(0, StoreKind::Lsm), node.change_store(2, StoreKind::Sled))
    };
    let meanwhile = async {
        node.wait(|view| view.pending.iter().any(|line| line.contains("first"))).await;
        assert_eq!(node.cores.unanswered(), 1, "the other waits for its turn");
        let busy = node.change_store(2, StoreKind::Lsm).await.unwrap_err();
        assert_eq!(busy.reason, Reason::PartitionBusy);
        for busy in [
            node.change_store(0, StoreKind::Sled).await.map(drop).unwrap_err(),
            node.remove(0, true).await.map(drop).unwrap_err(),
            node.snapshot(0, machine.path("s")).await.map(drop).unwrap_err(),
        ] {
            assert_eq!(busy.reason, Reason::PartitionBusy, "{busy}");
        }
        node.cores.speak();
    };
    let ((one, other), ()) = tokio::join!(calls, meanwhile);
    one.unwrap();
    other.unwrap();
    node.settle().await;
    node.check(&machine);
    assert_eq!((node.store(0), node.store(2)), (StoreKind::Lsm, StoreKind::Sled));
}
