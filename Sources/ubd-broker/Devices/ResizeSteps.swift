import BrokerInterface
import KernelABI
import SystemCalls
import WorkerProtocol

// The steps of an upgrade for the sake of another size that an ordinary upgrade does not have.
extension UpgradeOperation {
    /// The worker of the rehearsal is fit. A device that becomes smaller does so before its worker: no request may reach
    /// behind the bounds of the next one.
    func measured(_ result: Result<Geometry, InterfaceError>, _ resizing: Resizing) {
        switch result {
        case .failure(let error):
            // Its worker may have locked bytes.
            device.releasesBytes = true
            return end(.failed(resizing.explained(error, device)))
        case .success(let geometry) where geometry.size == device.info.sizeBytes: return end(.current)
        case .success(let geometry): newSize = geometry.size
        }
        guard newSize < device.info.sizeBytes else { return operation.go(to: .takeOver) }
        broker.askHolding(of: device) { [self] holding in
            guard operation.isActive else { return }
            if let error = Resizing.refusal(of: device, holding) { return end(.failed(error)) }
            operation.next()
        }
    }

    /// Tells the kernel the smaller size. A worker that serves more than the disk has does no harm.
    func shrink() {
        // With --recovery none it would have no disk once its worker died, and the command crashes some kernels then.
        guard device.info.state == .live, device.recovery == nil, device.info.recovery != .none else {
            return end(.failed(SizeUpdate.notLive(device)))
        }
        (device.pendingSize, device.kernelMayHavePending) = (newSize, true)
        if let problem = broker.save(device) {
            device.pendingSize = nil
            return end(.failed(StartErrors.notRecorded(problem, in: broker.store.folder)))
        }
        operation.command({ broker.driver.resize(device.id, bytes: newSize, $0) }) { [self] answer in
            if broker.hasDisk(of: newSize, device.id, answer) { return operation.next() }
            keepSize(StartErrors.kernelSaysNo("UPDATE_SIZE", answer.errno))
        }
    }

    /// Whoever began to use the device after the first look uses a disk of the old size, and gets it back.
    func lookAgain() {
        broker.askHolding(of: device) { [self] holding in
            guard operation.isActive else { return }
            let before = device.info.sizeBytes
            guard let error = Resizing.refusal(of: device, holding) else {
                device.resized(to: newSize)
                SizeUpdate.log(device, before: before)
                broker.save(device)
                return operation.next()
            }
            operation.command({ broker.driver.resize(device.id, bytes: before, $0) }) { [self] answer in
                if !answer.isDone {
                    Log.error("not-resized", ("device", "\(device.id)"), ("errno", SystemError.name(answer.errno)))
                }
                keepSize(error)
            }
        }
    }

    private func keepSize(_ error: InterfaceError) {
        device.pendingSize = nil
        broker.save(device)
        end(.failed(error))
    }

    /// The kernel has the smaller size, so the request is fulfilled whatever becomes of the new worker.
    var isShrunk: Bool { newSize > 0 && device.info.sizeBytes == newSize }

    /// A larger size is told to the kernel when the larger worker serves.
    var resized: Outcome {
        if device.info.sizeBytes == newSize { return .upgraded }
        let why = device.info.lastDeath.map { ": its worker \($0)" } ?? ""
        return .failed(
            .failed(
                message: "no worker got ready for \(newSize) bytes\(why)",
                remedy:
                    "the device serves \(device.info.sizeBytes) bytes as before; see whether its file has that size",
                step: "resize", errno: nil))
    }
}
