//! The program that takes the samples: which one this kernel can run, and loading it.

use aya::{
    Ebpf,
    maps::ProgramArray,
    programs::{PerfEvent, ProgramError, ProgramType},
    sys::{BpfHelper, is_helper_supported},
    util::KernelVersion,
};

use profiler_common::settings::{BOUNDED_END, BOUNDED_REST};

use super::live::CaptureError;

/// How stacks are walked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sampler {
    /// `bpf_loop`: 128 frames in one program (Linux 5.17).
    Loop,
    /// 64 frames a program, and two tail calls at most.
    Bounded,
    /// Not at all: what a walk costs is measured against this.
    Floor,
}

/// What goes on with the walk of [`Sampler::Bounded`] and what ends its samples, where each is in
/// their map, and the map.
const BOUNDED: [(&str, u32); 2] = [("on_cpu_end", BOUNDED_END), ("on_cpu_rest", BOUNDED_REST)];
const BOUNDED_MAP: &str = "BOUNDED";

impl Sampler {
    /// The one for this kernel.
    pub(super) fn for_this_kernel() -> Self {
        const SINCE: KernelVersion = KernelVersion::new(5, 17, 0);
        let has_loop = is_helper_supported(ProgramType::PerfEvent, BpfHelper::BPF_FUNC_loop)
            .unwrap_or_else(|_error| KernelVersion::current().is_ok_and(|now| now >= SINCE));
        if has_loop { Self::Loop } else { Self::Bounded }
    }

    /// The program's name in the object.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Loop => "on_cpu",
            Self::Bounded => "on_cpu_bounded",
            Self::Floor => "on_cpu_floor",
        }
    }

    /// The program itself.
    pub(super) fn program(self, ebpf: &mut Ebpf) -> Result<&mut PerfEvent, CaptureError> {
        program(ebpf, self.name())
    }

    /// Has it verified.
    pub(super) fn load(self, ebpf: &mut Ebpf) -> Result<(), CaptureError> {
        if self == Self::Bounded {
            for (name, index) in BOUNDED {
                let failed = |source| CaptureError::Program { name, source };
                let part = program(ebpf, name)?;
                part.load().map_err(failed)?;
                let part = part.fd().and_then(|fd| fd.try_clone().map_err(ProgramError::IOError));
                let part = part.map_err(failed)?;
                let no_map = |source| CaptureError::NoSuchMap { name: BOUNDED_MAP, source };
                let map = ebpf.map_mut(BOUNDED_MAP).ok_or(no_map(None))?;
                let mut map = ProgramArray::try_from(map).map_err(|error| no_map(Some(error)))?;
                map.set(index, &part, 0).map_err(|error| no_map(Some(error)))?;
            }
        }
        let name = self.name();
        let program = self.program(ebpf)?;
        program.load().map_err(|source| CaptureError::Program { name, source })?;
        let verified = program.info().ok().and_then(|info| info.verified_instruction_count());
        tracing::debug!(name, verified, "the sampler is loaded");
        Ok(())
    }
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut PerfEvent, CaptureError> {
    ebpf.program_mut(name)
        .and_then(|program| program.try_into().ok())
        .ok_or(CaptureError::NoSuchProgram(name))
}
