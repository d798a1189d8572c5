//! How a partition executes an update: as the write of its result, see `operators.rs`.

use stateside_statestore::Lookup;
use stateside_types::{
    Ack, Expiry, Reason, Refusal, RequestId, RequestMark, UpdateEntry, WallClock, WriteEntry,
};

use super::{Effects, Partition, Ticket};
use crate::{
    operators::NewValues,
    retries::{Accepted, update_hash},
};

/// What an update asks for beside its entries.
#[derive(Clone, Copy)]
pub(super) struct UpdateTerms<'a> {
    pub(super) ack: Option<Ack>,
    pub(super) request: Option<RequestId<'a>>,
    pub(super) return_values: bool,
}

impl Partition {
    /// False: the store has to fetch first.
    pub(super) fn update_values(
        &mut self,
        ticket: Ticket,
        entries: &[UpdateEntry<'_>],
        UpdateTerms { ack, request, return_values }: UpdateTerms<'_>,
        effects: &mut impl Effects,
    ) -> bool {
        let mut mark = None;
        if let Some(id) = request {
            let hash = update_hash(entries, return_values);
            mark = self.recall(ticket, id, hash, ack, effects);
            let Some(mark) = &mut mark else { return true };
            // There is room for the values; which they are is known when the stages have seen them.
            mark.values = return_values.then(|| [].into());
        }
        let unknown = |key: &&[u8]| self.store.get(key) == Lookup::Unknown;
        let missing: Vec<&[u8]> = entries.iter().map(|entry| entry.key).filter(unknown).collect();
        if !missing.is_empty() {
            self.store.fetch(&missing);
            return false;
        }
        match self.execute_update(entries, ack, mark.as_ref(), effects) {
            Err(refusal) => self.refuse_write(ticket, refusal, effects),
            Ok(refused @ Accepted { refusal: Some(_), .. }) => {
                self.acknowledge(ticket, refused, effects);
            }
            Ok(executed) => {
                // From the store, not as computed: stages may have changed it on its way there.
                for entry in entries.iter().filter(|_| return_values) {
                    let Lookup::Found(record) = self.store.get(entry.key) else {
                        unreachable!("a store knows what it was given last");
                    };
                    effects.value(ticket, record.value);
                }
                self.acknowledge(ticket, executed, effects);
            }
        }
        true
    }

    fn execute_update(
        &mut self,
        entries: &[UpdateEntry<'_>],
        asked: Option<Ack>,
        request: Option<&RequestMark<'_>>,
        effects: &mut impl Effects,
    ) -> Result<Accepted, Refusal> {
        let ack = self.check_serving(asked)?;
        let now = self.tell_time(effects);
        let (values, expiries) = match self.compute(entries, now) {
            Ok(computed) => computed,
            Err(refusal) => {
                let write = self.next_write(&[], request, now, ack);
                return self.refuse_for_good(&write, refusal, effects);
            }
        };
        let writes: Vec<_> = entries
            .iter()
            .zip(values.iter().zip(expiries))
            .map(|(entry, (value, expiry))| WriteEntry::put(entry.key, value).expiring(expiry))
            .collect();
        self.execute(&writes, asked, request, effects)
    }

    /// New values and their expiries, from the present ones.
    fn compute(
        &self,
        entries: &[UpdateEntry<'_>],
        now: WallClock,
    ) -> Result<(NewValues, Vec<Expiry>), Refusal> {
        // Ahead of the values: a condition that fails is not to be masked by a value of the wrong type.
        let conditions = entries.iter().map(|e| WriteEntry::remove(e.key).under(e.condition));
        self.check_conditions(&conditions.collect::<Vec<_>>(), now)?;
        let mut values = NewValues::default();
        let mut expiries = Vec::with_capacity(entries.len());
        for (index, entry) in entries.iter().enumerate() {
            let present = match self.store.get(entry.key) {
                Lookup::Found(record) => Some(record).filter(|record| !record.is_expired(now)),
                Lookup::Withheld { expire_at, .. }
                    if !expire_at.is_some_and(|moment| moment.has_come(now)) =>
                {
                    let text = "the values that the batch changes are too large together";
                    return Err(Refusal::new(Reason::BatchTooLarge, text));
                }
                Lookup::Absent | Lookup::Unknown | Lookup::Withheld { .. } => None,
            };
            let value = present.map(|record| record.value);
            values.push(entry, value).map_err(|refusal| refusal.with("entry", index))?;
            let kept = Expiry::from(present.and_then(|record| record.expire_at));
            expiries.push(if entry.expiry == Expiry::Never { kept } else { entry.expiry });
        }
        Ok((values, expiries))
    }
}
