import BrokerInterface
import Glibc
import KernelABI
import Policy
import SystemCalls

/// Milliseconds.
private enum Deadline {
    static let lingeringNumber = 3_000
    static let lingeringAnyNumber = 1_000
    static let pause = 50
}

/// The commands of an add to the kernel's driver: choosing the number, ADD_DEV, START_DEV.
extension AddOperation {
    // MARK: ADD_DEV

    func chooseID() {
        if let name = plan.name,
            let other = broker.devices.values.first(where: { $0.owner == ownerUID && $0.info.name == name })
        {
            return fail(StartErrors.hasName(other, name))
        }
        let id: UInt32
        do { id = try broker.number(plan.id, rule, except: triedIDs) } catch { return fail(error) }
        triedIDs.insert(id)
        let device = ManagedDevice(
            adding: plan, mode: mode, ioTimeout: ioTimeout, allowedCPUs: rule.limits.cpus.flatMap(CPUList.init),
            groupLimits: broker.groupLimits(rule, peer, plan),
            trustedContent: rule.limits.trustedContent, id: id, owner: ownerUID, generation: broker.newGeneration(),
            node: broker.nodes.block(id))
        do {
            // The record comes before the kernel call, so that a broker that dies in between leaves a trace.
            try broker.store.create(device.record)
        } catch {
            // Another record with this number appeared just now.
            if error.errno == EEXIST { return chooseID() }
            return fail(StartErrors.notRecorded(error, in: broker.store.folder))
        }
        broker.enlist(device)
        self.device = device
        operation.next()
    }

    func addDevice(_ device: ManagedDevice) {
        var info = UblkDeviceInfo()
        info.deviceID = device.id
        info.queues = plan.queues
        info.depth = plan.depth
        info.maxIOBytes = plan.maxIOBytes
        // A field for the server's use: it tells a later broker that the kernel's device is the recorded one.
        info.serverFlags = device.info.generation
        info.flags = features.rawValue
        operation.command(
            { broker.driver.add(info, $0) }, late: { [self] answer in addedLate(device, answer) },
            then: { [self] answer in deviceAdded(device, answer) })
    }

    /// In seconds: the requested timeout, which the rule allows, or the default, clamped to the rule's bounds.
    private var ioTimeout: Int64 {
        let wanted = plan.ioTimeout ?? Int64(broker.configuration.ioTimeout)
        guard let bounds = rule.limits.ioTimeout else { return wanted }
        return min(max(wanted, Int64(clamping: bounds.lowerBound)), Int64(clamping: bounds.upperBound))
    }

    /// The features that the device must have.
    private var features: UblkFeatures {
        var features = plan.recovery.features.union(mode.features)
        // For upgrades. The kernel accepts it only together with recovery.
        if plan.recovery != .none, !mode.isBatch, broker.driver.features.contains(.quiesce) {
            features.insert(.quiesce)
        }
        return features
    }

    private func deviceAdded(_ device: ManagedDevice, _ answer: DriverAnswer<UblkDeviceInfo>) {
        guard let info = answer.content else { return deviceNotAdded(device, answer.verdict, answer.errno) }
        device.isInKernel = true
        // After ADD_DEV confirms the number: otherwise udev would give another server's device to our user. Before
        // START_DEV creates the disk: its udev rule must find the record.
        let link = broker.nodes.mayLink(device.id) ? Nodes.linkName(device.id) : nil
        do { try broker.store.writeUdev(device.info, link: link) } catch {
            return fail(StartErrors.notRecorded(error, in: broker.store.udevFolder))
        }
        // ADD_DEV silently clears unknown flags, so its answer must be compared with the request.
        guard info.features.contains(.ioctlEncoding) || broker.configuration.usesLegacyOpcodes else {
            return fail(
                .kernelUnsupported(
                    message: "this kernel's ublk driver lacks ioctl-encoded commands",
                    remedy: "use Linux 6.4 or later", feature: "CMD_IOCTL_ENCODE"))
        }
        let missing = features.subtracting(info.features)
        guard missing.isEmpty else { return fail(StartErrors.lacking(missing, plan.recovery, mode)) }
        guard info.depth > 0, info.queues > 0, info.depth <= plan.depth, info.queues <= plan.queues,
            info.maxIOBytes > 0, info.maxIOBytes <= plan.maxIOBytes
        else { return fail(StartErrors.broken("ADD_DEV", SystemError("the kernel's limits make no sense", EINVAL))) }
        notices += plan.notices(about: info)
        device.info.queues = info.queues
        device.info.depth = info.depth
        device.info.maxIOBytes = info.maxIOBytes
        operation.next()
    }

    private func deviceNotAdded(_ device: ManagedDevice, _ verdict: ControlVerdict, _ errno: Int32) {
        if verdict == .taken {
            // The device is another server's. Remove our record at once, so that nobody deletes that device because of
            // it.
            broker.store.removeRecord(device.id)
            broker.forget(device)
            self.device = nil
            // Our own previous device with this number may still exist: udev, which has been told of its end, may have
            // it open. The kernel is rarely done with it when DEL_DEV_ASYNC returns.
            let patience = plan.id == nil ? Deadline.lingeringAnyNumber : Deadline.lingeringNumber
            if broker.hasDeleted(device.id, withinMilliseconds: patience) {
                triedIDs.remove(device.id)
                return operation.wait(milliseconds: Deadline.pause) { [self] in operation.go(to: .number) }
            }
            guard let wanted = plan.id else { return operation.go(to: .number) }
            return fail(
                .idInUse(
                    message: "device number \(wanted) is in use by another ublk server or still being deleted",
                    remedy: "choose another number, or leave -n out", id: Int64(wanted)))
        }
        // The device may exist, so the undoing must look for it.
        device.mayBeInKernel = verdict == .unknown
        fail(StartErrors.kernelSaysNo("ADD_DEV", errno))
    }

    /// The add failed while ADD_DEV was in the kernel. Notes its effect for the undoing.
    private func addedLate(_ device: ManagedDevice, _ answer: DriverAnswer<UblkDeviceInfo>) {
        switch answer.verdict {
        case .done: device.isInKernel = true
        case .unknown: device.mayBeInKernel = true
        default:
            // The kernel has no device of ours.
            broker.store.removeRecord(device.id)
            broker.forget(device)
            self.device = nil
        }
    }

    // MARK: START_DEV

    func startDevice(_ device: ManagedDevice) {
        guard let worker = device.worker else { return operation.lacks("a worker") }
        // Without a record of this step a later broker would not know that there may be a disk.
        if let problem = broker.recordProblem(of: device) {
            return fail(StartErrors.notRecorded(problem, in: broker.store.folder))
        }
        device.mayBeStarted = true
        operation.commit({ broker.driver.start(device.id, worker: worker.pid, $0) }) { [self] answer in
            started(device, answer)
        }
    }

    private func started(_ device: ManagedDevice, _ answer: DriverAnswer<Void>) {
        guard answer.isDone else {
            return fail(StartErrors.kernelSaysNo("START_DEV", answer.errno))
        }
        guard let worker = device.worker, worker.isAlive else {
            return fail(StartErrors.workerBroke("it died during the start"))
        }
        do { try worker.resume() } catch { return fail(StartErrors.broken("resume the worker", error)) }
        operation.command({ broker.driver.parameters(of: device.id, $0) }) { [self] answer in
            guard let nodes = answer.content?.nodes else {
                return fail(StartErrors.kernelSaysNo("GET_PARAMS", answer.errno))
            }
            diskNodes = nodes
            operation.next()
        }
    }
}
