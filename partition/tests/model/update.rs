//! What updates write and tell, one by one.

use stateside_pipeline::read_stage;
use stateside_types::{OptionValue, PipelineSpec};

use super::*;

#[test]
fn an_update_writes_its_result_and_keeps_the_moment() {
    let mut run = Run::new(Ack::Memory, false);
    run.world.now = 1_000;
    let update = |run: &mut Run, ticket, entries: &[UpdateEntry<'_>]| {
        run.partition.step(
            Input::Update {
                ticket: Ticket(ticket),
                entries,
                ack: None,
                request: None,
                return_values: true,
            },
            &mut run.world,
        );
        run.world.done.pop().expect("answered at once").1.map_err(|refusal| refusal.reason)
    };
    let (condition, expiry) = (Condition::None, Expiry::Never);
    let add = UpdateEntry { key: b"n", operator: Operator::Add(5), condition, expiry };
    let brief = UpdateEntry { expiry: Expiry::After(500), ..add };
    assert_eq!(update(&mut run, 1, &[brief]), Ok(Some(Sequence(1))));
    assert_eq!(update(&mut run, 2, &[add]), Ok(Some(Sequence(2))));
    assert_eq!(run.world.values[&2], [b"10"]);
    let logged = &run.world.log[1].entries;
    assert_eq!(logged[0].1, Some((b"10".to_vec(), ExpireAt::from_millis(1_500))));

    // One entry that cannot be refuses the batch, and nothing has changed.
    let text = UpdateEntry { key: b"t", operator: Operator::Append(b"text"), ..add };
    assert_eq!(update(&mut run, 3, &[text]), Ok(Some(Sequence(3))));
    let wrong = UpdateEntry { key: b"t", ..add };
    assert_eq!(update(&mut run, 4, &[add, wrong]), Err(Reason::WrongType));
    let absent = UpdateEntry { condition: Condition::IfAbsent, ..wrong };
    assert_eq!(update(&mut run, 5, &[absent]), Err(Reason::ConditionFailed));
    assert_eq!(run.partition.applied(), Sequence(3));

    // From its moment on the record counts as absent.
    run.world.now = 1_500;
    assert_eq!(update(&mut run, 6, &[add]), Ok(Some(Sequence(4))));
    assert_eq!(run.world.values[&6], [b"5"]);
    assert_eq!(run.world.log[3].entries[0].1, Some((b"5".to_vec(), None)));
}

#[test]
fn an_update_tells_what_the_stages_let_be_stored() {
    let mut run = Run::new(Ack::Memory, false);
    let sanitizer = vec![
        ("drop".to_owned(), OptionValue::Texts(vec!["/secret".to_owned()])),
        ("prefix".to_owned(), OptionValue::Texts(vec!["j".to_owned()])),
    ];
    let filter = vec![("value_bytes_max".to_owned(), OptionValue::Integer(9))];
    let front = [("sanitizer", sanitizer), ("filter", filter)];
    let mut stages: Vec<_> =
        front.into_iter().map(|(name, options)| read_stage(name, options).unwrap()).collect();
    stages.extend(PipelineSpec::from(DEFAULT_PIPELINE).iter().cloned());
    let spec = PartitionSpec { pipeline: stages.into(), ..run.partition.spec().clone() };
    run.partition = Partition::new(spec, Box::new(replay(&[], false))).unwrap();
    let (condition, expiry) = (Condition::None, Expiry::Never);
    let mut update = |ticket, key: &[u8], operator| {
        let entries = [UpdateEntry { key, operator, condition, expiry }];
        let ticket = Ticket(ticket);
        let input = Input::Update {
            ticket,
            entries: &entries,
            ack: None,
            request: None,
            return_values: true,
        };
        run.partition.step(input, &mut run.world);
        let outcome = run.world.done.pop().expect("answered at once").1;
        outcome.map(|_| run.world.values.remove(&ticket.0).unwrap()).map_err(|e| e.reason)
    };
    let document = br#"{"secret":"0123456789","a":1}"#;
    let stored = br#"{"a":1}"#;
    assert_eq!(update(1, b"j", Operator::Merge(document)), Ok(vec![stored.to_vec()]));
    // The filter judges the value that there would be, not what came with the request.
    assert_eq!(update(2, b"t", Operator::Append(b"12345")), Ok(vec![b"12345".to_vec()]));
    assert_eq!(update(3, b"t", Operator::Append(b"67890")), Err(Reason::Filtered));
    assert_eq!(update(4, b"t", Operator::Append(b"6789")), Ok(vec![b"123456789".to_vec()]));
}
