//! Refusals as gRPC statuses: code, message, `ErrorInfo` with the stable reason, `RetryInfo` where
//! a retry makes sense.

use std::{collections::HashMap, time::Duration};

use stateside_types::Refusal;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

/// `ErrorInfo.domain` of every refusal.
pub(crate) const ERROR_DOMAIN: &str = "stateside.dev";

pub(crate) fn to_status(refusal: &Refusal) -> Status {
    let metadata: HashMap<String, String> = refusal
        .metadata
        .iter()
        .map(|(key, value)| (key.clone().into_owned(), value.clone()))
        .collect();
    let mut details =
        ErrorDetails::with_error_info(refusal.reason.as_str(), ERROR_DOMAIN, metadata);
    if let Some(ms) = refusal.retry_after_ms {
        details.set_retry_info(Some(Duration::from_millis(ms.into())));
    }
    let code = Code::from_i32(refusal.reason.code() as i32);
    Status::with_error_details(code, refusal.text(), details)
}

#[cfg(test)]
mod tests {
    use stateside_types::Reason;

    use super::*;

    #[test]
    fn every_reason_keeps_its_code_and_is_named_in_the_details() {
        for reason in Reason::ALL {
            let refusal = Refusal::new(*reason, "it is so").with("partition", 7);
            let status = to_status(&refusal);
            assert_eq!(status.code() as i32, reason.code() as i32);
            assert!(status.message().starts_with("it is so; "));
            let details = status.get_error_details();
            let info = details.error_info().unwrap();
            assert_eq!(
                (info.reason.as_str(), info.domain.as_str()),
                (reason.as_str(), ERROR_DOMAIN)
            );
            assert_eq!(info.metadata["partition"], "7");
            let retry = details.retry_info().and_then(|retry| retry.retry_delay);
            let ms = retry.map(|delay| delay.as_millis() as u32);
            assert_eq!(ms, refusal.retry_after_ms);
        }
    }
}
