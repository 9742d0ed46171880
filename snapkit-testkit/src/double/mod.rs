//! Stand-ins for what a test does not want to use, or wants to fail. Faults come from wrappers, so
//! that what is wrapped stays what runs in production.

mod faulty;
mod forgetful;
mod progress;
mod recording;
mod scripted;
mod slow;

pub use faulty::{Fault, FaultySink, Timing};
pub use forgetful::{ForgetfulDisk, ForgetfulFile};
pub use progress::RecordingProgress;
pub use recording::{Operation, RecordingSink, Verb};
pub use scripted::{
    Call, CallLog, ScriptedArtifact, ScriptedContent, ScriptedFile, ScriptedRecord, ScriptedSource,
    Stage, Trouble,
};
pub use slow::SlowSink;
