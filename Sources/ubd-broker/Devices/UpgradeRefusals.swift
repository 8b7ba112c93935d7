import BrokerInterface
import SystemCalls

// Which devices get no other worker while they are in use, and why.
extension UpgradeOperation {
    /// Why this device cannot be upgraded; nil when it can.
    var refusal: InterfaceError? {
        let name = device.info.link ?? device.info.node
        guard device.upgrade == nil, device.recovery == nil, device.teardown == nil, device.reopening == nil else {
            return .busy(
                message: "\(name) is getting a new worker, or being deleted, right now",
                remedy: "try again a little later",
                id: Int64(device.id), holder: "the broker")
        }
        guard device.info.state == .live, device.worker?.isAlive == true else {
            let why = device.info.reason.map { ": \($0)" } ?? ""
            return .failed(
                message: "\(name) is \(device.info.state.rawValue), and only live devices get another worker\(why)",
                remedy: remedyWhenNotLive, step: "state", errno: nil)
        }
        if device.info.recovery == .none {
            return .failed(
                message: "\(name) was added with --recovery none: the kernel allows no second worker",
                remedy: "delete it and add it again, with another --recovery for the next time", step: "recovery",
                errno: nil)
        }
        if device.watch.isReported {
            return .busy(
                message: "\(name) waits for \(device.source), which does not answer", remedy: "try again when it does",
                id: Int64(device.id), holder: device.source)
        }
        if device.needsFreshInputs, !canQuiesce { return device.wouldLoseConnections }
        return canQuiesce || device.info.recovery == .reissue ? nil : wouldFailRequests
    }

    var remedyWhenNotLive: String {
        switch device.info.state {
        case .failed: "delete it ('ubd del -n \(device.id)') and add it again: then it has the new program"
        case .unmanaged, .stuck, .deleting: "a device that is added anew has the new program"
        default:
            if !device.waitsForFile {
                "see 'ubd list -n \(device.id)', and try again when it is live"
            } else if device.launch == nil || device.isDisposable || device.file == .none && !device.needsFreshInputs {
                "delete it ('ubd del -n \(device.id) --force') and add it again: then it has the new program"
            } else {
                "\(device.hasServer ? "bring it new connections" : "reopen its file") first ('ubd recover -n \(device.id)')"
            }
        }
    }

    /// Not in batch mode: there QUIESCE_DEV makes the driver fail every request until the next server is ready
    /// (ublk_batch_cancel_queue sets force_abort; Linux 7.3).
    var canQuiesce: Bool {
        !device.info.mode.isBatch && broker.driver.features.contains(.quiesce)
    }

    /// Without QUIESCE_DEV the kernel repeats or fails the requests that the old worker has taken.
    var wouldFailRequests: InterfaceError {
        .kernelUnsupported(
            message:
                "\(device.info.link ?? device.info.node) was added with --recovery \(device.info.recovery.rawValue), "
                + "and the kernel can not quiesce it: requests under way would fail",
            remedy: "delete it and add it again, with --recovery reissue"
                + (device.info.mode.isBatch ? " or with --mode copy" : " or on Linux 6.16 or later"), feature: "QUIESCE"
        )
    }
}

extension Broker {
    func upgrade(
        _ request: UpgradeRequest, peer: PeerCredentials,
        completion: @escaping (Result<UpgradeReply, InterfaceError>) -> Void
    ) {
        guard let device = device(request.id, request.generation, for: "upgrade", of: peer) else {
            return completion(.failure(noSuchDevice(request.id)))
        }
        let permission = { [self] in permitStart(for: device, "upgrade", peer) }
        let operation = UpgradeOperation(device, broker: self, permission: permission) { [self] outcome in
            switch outcome {
            case .upgraded: completion(.success(UpgradeReply(upgraded: true, device: description(of: device))))
            case .current: completion(.success(UpgradeReply(upgraded: false, device: description(of: device))))
            case .failed(let error): completion(.failure(error))
            }
        }
        operation.begin()
    }
}
