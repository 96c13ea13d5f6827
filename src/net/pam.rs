//! PAM decides about a password (auth 8.1). Blocks for as long as the modules like.

use crate::core::{Attempt, Outcome};
use nonstick::conv::Exchange;
use nonstick::items::ItemsMut;
use nonstick::{AuthnFlags, Conversation, PamShared, Transaction, TransactionBuilder};
use std::cell::RefCell;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStringExt;
use std::rc::Rc;
use zeroize::Zeroizing;

/// The name under which PAM is configured.
const SERVICE: &str = "pgbouncer";

/// Answers the modules' questions.
struct Answers {
    password: Zeroizing<Vec<u8>>,
    /// Errors that they report.
    lines: Rc<RefCell<Vec<String>>>,
}

impl Conversation for Answers {
    fn communicate(&self, messages: &[Exchange<'_>]) {
        for message in messages {
            match message {
                Exchange::MaskedPrompt(prompt) => {
                    prompt.set_answer(Ok(OsString::from_vec(self.password.to_vec())));
                }
                Exchange::Error(error) => {
                    let text = error.question().to_string_lossy();
                    let line = format!("pam_conversation(): PAM error: {text}");
                    self.lines.borrow_mut().push(line);
                    error.set_answer(Ok(()));
                }
                // What else they ask we can't know.
                Exchange::Prompt(prompt) => prompt.set_answer(Ok(OsString::new())),
                Exchange::RadioPrompt(prompt) => prompt.set_answer(Ok(OsString::new())),
                Exchange::Info(info) => info.set_answer(Ok(())),
                _ => {}
            }
        }
    }
}

/// Asks PAM.
pub(super) fn judge(attempt: &Attempt) -> Outcome {
    let lines = Rc::new(RefCell::new(Vec::new()));
    let answers = Answers { password: attempt.password.clone(), lines: Rc::clone(&lines) };
    let result = transact(attempt, answers);
    let mut lines = lines.take();
    let accepted = result.is_ok();
    lines.extend(result.err());
    Outcome::Judged { accepted, lines }
}

fn transact(attempt: &Attempt, answers: Answers) -> Result<(), String> {
    let builder = TransactionBuilder::new_with_service(SERVICE).username(&attempt.user);
    let mut pam = builder.build(answers).map_err(|why| format!("pam_start() failed: {why}"))?;
    let host = &attempt.host;
    pam.items_mut()
        .set_remote_host(Some(OsStr::new(host)))
        .map_err(|_| format!("pam_set_item(): can't set PAM_RHOST to '{host}'"))?;
    pam.authenticate(AuthnFlags::SILENT)
        .map_err(|why| format!("pam_authenticate() failed: {why}"))?;
    pam.account_management(AuthnFlags::SILENT)
        .map_err(|why| format!("pam_acct_mgmt() failed: {why}"))
}
