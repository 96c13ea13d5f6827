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

#[cfg(test)]
mod tests {
    use super::*;
    use nonstick::conv::{BinaryData, BinaryQAndA, ErrorMsg, InfoMsg, MaskedQAndA};
    use nonstick::conv::{QAndA, RadioQAndA};

    #[test]
    fn only_hidden_prompts_get_the_password() {
        let lines = Rc::new(RefCell::new(Vec::new()));
        let password = b"se\xffcret".to_vec();
        let answers = Answers { password: password.clone().into(), lines: Rc::clone(&lines) };
        let question = OsStr::new("tell me\nmore");
        let hidden = [MaskedQAndA::new(question), MaskedQAndA::new(question)];
        let (shown, radio) = (QAndA::new(question), RadioQAndA::new(question));
        let (info, error) = (InfoMsg::new(question), ErrorMsg::new(question));
        let binary = BinaryQAndA::new((b"x", 1));
        answers.communicate(&[
            Exchange::MaskedPrompt(&hidden[0]),
            Exchange::Prompt(&shown),
            Exchange::RadioPrompt(&radio),
            Exchange::Info(&info),
            Exchange::Error(&error),
            Exchange::BinaryPrompt(&binary),
            Exchange::MaskedPrompt(&hidden[1]),
        ]);
        for prompt in hidden {
            assert_eq!(prompt.answer().unwrap().into_vec(), password);
        }
        assert_eq!(shown.answer().unwrap(), "");
        assert_eq!(radio.answer().unwrap(), "");
        assert!(info.answer().is_ok() && error.answer().is_ok());
        assert!(binary.answer().map(BinaryData::into).map(|_: (Vec<u8>, u8)| ()).is_err());
        assert_eq!(*lines.borrow(), ["pam_conversation(): PAM error: tell me\nmore"]);
    }

    /// Whatever this machine's PAM says of a user whom nobody can be.
    #[test]
    fn nobody_gets_in_who_is_nobody() {
        let user = "nobody by this name".to_owned();
        let attempt = Attempt { user, password: b"x".to_vec().into(), host: "unix".into() };
        let Outcome::Judged { accepted, lines } = judge(&attempt) else { panic!("no judgement") };
        assert!(!accepted);
        let last = lines.last().expect("a line that says why");
        assert!(last.starts_with("pam_") && last.contains("() failed: "), "{last}");
        assert!(!last.contains("password: x"));
    }
}
