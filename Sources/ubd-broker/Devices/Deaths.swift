import BrokerInterface
import SystemCalls

private enum WorkerDeadline {
    /// Milliseconds.
    static let kill = 5_000
}

/// Deaths of live devices' workers, and killing them.
extension Broker {
    /// Kills the worker of a live device; its death is then handled as usual. An unkillable worker leaves the device
    /// stuck until it has died.
    func kill(_ device: ManagedDevice, because reason: String) {
        guard let worker = device.worker, worker.end == nil else { return }
        device.killedBecause = reason
        worker.kill()
        loop.after(milliseconds: WorkerDeadline.kill) { [self] in
            guard device.worker === worker, worker.end == nil, [.live, .unmanaged].contains(device.info.state) else {
                return
            }
            device.setState(
                .stuck,
                reason: "its worker \(reason), but it does not die: it waits for a file or disk that does not answer")
            Log.error("stuck", ("device", "\(device.id)"), ("owner", "\(device.owner)"), ("worker", "\(worker.pid)"))
            save(device)
        }
    }

    /// Handles an event of a live device's worker.
    func workerEvent(_ device: ManagedDevice, _ event: WorkerEvent) {
        let states: [DeviceState] = [.live, .unmanaged, .stuck]
        guard states.contains(device.info.state), device.teardown == nil else { return }
        switch event {
        case .ended(let change):
            noteDeath(of: device, change)
        case .violation(let what):
            Log.error("worker-violation", ("device", "\(device.id)"), ("what", what))
            kill(device, because: "was killed by the broker: it sent \(what)")
        default:
            Log.warning("worker-event", ("device", "\(device.id)"), ("what", "\(event)"))
        }
    }

    private func noteDeath(of device: ManagedDevice, _ change: ProcessChange) {
        // A server that goes is no fault of the worker's, and its owner must bring connections before the next one can end so.
        let serversDoing = device.killedBecause == nil ? device.serversDoing(change) : nil
        let cause = device.killedBecause ?? serversDoing ?? DeathCauses.plain(change)
        let pid = device.worker?.pid ?? 0
        Log.error(
            "worker-ended", ("device", "\(device.id)"), ("worker", "\(pid)"), ("target", device.info.target),
            ("how", device.killedBecause ?? serversDoing ?? "\(change)"))
        device.info.deaths += 1
        device.info.lastDeath = cause
        if serversDoing == nil { device.deathLog.add(window: configuration.deathWindow) }
        if device.killedBecause == nil, serversDoing == nil {
            // Recovery does not wait for this.
            deathCauses.ask(change, of: device.worker) { [self] words in
                guard words != cause else { return }
                Log.error("cause", ("device", "\(device.id)"), ("worker", "\(pid)"), ("how", words))
                device.correctDeath(cause, to: words)
                if devices[device.id] === device { save(device) }
            }
        }
        device.killedBecause = nil
        if device.info.recovery != .none, device.info.state == .unmanaged {
            replaceWorker(self, device, change)
        } else if device.info.recovery == .none {
            fail(device, because: "its worker \(cause); delete it and add it again")
        } else if device.deathLog.isTooMany {
            let often = "\(device.deathLog.count) within \(configuration.deathWindow) s"
            fail(device, because: "its workers keep dying (\(often)), the last \(cause)")
        } else {
            replaceWorker(self, device, change)
        }
    }
}
