import Glibc
import SystemCalls

/// Workers that did what none of our workers does: they were compromised, or ubd has a bug.
extension Broker {
    /// Examines a worker's end, once. `program`: the program that it ran, if known.
    func judge(_ worker: any Worker, of program: WorkerProgram?, for device: ManagedDevice) {
        if let what = worker.violation { return note(violation: "it sent \(what)", worker, program, device) }
        let forbidden = "a system call that its sandbox forbids"
        switch worker.end {
        case .killed(signal: SIGSYS): note(violation: forbidden, worker, program, device)
        case .gone:
            // For an adopted worker only the kernel's log tells.
            deathCauses.find(.gone, of: worker) { [self] finding in
                guard case .systemCall = finding else { return }
                note(violation: forbidden, worker, program, device)
            }
        default: break
        }
    }

    private func note(violation what: String, _ worker: any Worker, _ program: WorkerProgram?, _ device: ManagedDevice)
    {
        // A program of another version may not know these walls or this broker, which is not its owner's fault.
        if program?.identity == self.program.identity {
            startLimits.noteViolation(uid: account(of: device.owner), now: monotonicNanoseconds())
        }
        Log.event(
            .alert, "sandbox-violation",
            [
                ("device", "\(device.id)"), ("uid", "\(device.owner)"), ("worker", "\(worker.pid)"),
                ("target", device.info.target), ("what", what),
            ])
    }
}
