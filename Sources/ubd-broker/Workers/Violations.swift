import Glibc
import SystemCalls

/// Workers that did what no worker of ours does: they have been taken over, or ubd has a fault.
extension Broker {
    /// Looks at how a worker ended, once. `program`: what it ran, as far as is known.
    func judge(_ worker: any Worker, of program: WorkerProgram?, for device: ManagedDevice) {
        if let what = worker.violation { return note(violation: "it sent \(what)", worker, program, device) }
        let forbidden = "a system call that its sandbox forbids"
        switch worker.end {
        case .killed(signal: SIGSYS): note(violation: forbidden, worker, program, device)
        case .gone:
            // Of an adopted worker only the kernel's log tells.
            deathCauses.find(.gone, of: worker) { [self] finding in
                guard case .systemCall = finding else { return }
                note(violation: forbidden, worker, program, device)
            }
        default: break
        }
    }

    private func note(violation what: String, _ worker: any Worker, _ program: WorkerProgram?, _ device: ManagedDevice)
    {
        // One of another version may not know these walls or this broker: that is not its owner's doing.
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
