import BrokerInterface
import SystemCalls

/// Clients' requests that start an operation (except Recover and Upgrade, which are beside their operations).
extension Broker {
    /// Starts an add; returns nil when it is refused at once. `answer` gets all answers. The add is undone if
    /// `isWanted` returns false at its end, since the client is gone.
    func add(
        _ request: AddRequest, peer: PeerCredentials, isWanted: @escaping () -> Bool = { true },
        answer: @escaping (AddOperation.Answer) -> Void
    ) -> AddOperation? {
        var line: String?
        do throws(InterfaceError) {
            let plan = try AddPlan(request)
            try demandOnline(plan.cpus)
            let rule = try permit(plan, peer, line: &line)
            try demandOnline(anyOf: rule)
            try driver.ready()
            let choice = ModeChoice(
                kernel: driver.features, zeroCopyGranted: rule.limits.zeroCopy, rule: rule.text)
            let mode = try choice.mode(for: plan)
            let operation = AddOperation(
                plan, mode: mode, peer: peer, rule: rule, broker: self, isWanted: isWanted, answer: answer)
            Log.client(
                .request, peer.uid, .info, "add-allowed",
                [
                    ("uid", "\(peer.uid)"), ("pid", "\(peer.pid)"), ("target", request.target),
                    ("result", "allowed"), ("rule", rule.place),
                ])
            adds[ObjectIdentifier(operation)] = operation
            operation.begin()
            return operation
        } catch {
            Log.client(
                .refusal, peer.uid, .notice, "add-refused",
                [
                    ("uid", "\(peer.uid)"), ("pid", "\(peer.pid)"), ("target", request.target),
                    ("result", "refused"), ("rule", line ?? "none"), ("why", error.message),
                ])
            answer(.failed(error))
            return nil
        }
    }

    func delete(_ request: DeleteRequest, peer: PeerCredentials, completion: @escaping (InterfaceError?) -> Void) {
        let force = ("force", "\(request.force ?? false)")
        guard let device = device(request.id, request.generation, for: "delete", of: peer, force) else {
            return completion(noSuchDevice(request.id))
        }
        DeleteOperation(device, broker: self, completion: completion).begin(force: request.force ?? false)
    }
}

extension Broker {
    func resize(
        _ request: ResizeRequest, peer: PeerCredentials,
        completion: @escaping (Result<ResizeReply, InterfaceError>) -> Void
    ) {
        guard let device = device(request.id, request.generation, for: "resize", of: peer) else {
            return completion(.failure(noSuchDevice(request.id)))
        }
        if let bytes = request.sizeBytes, bytes <= 0 {
            return completion(
                .failure(
                    .invalidOption(
                        message: "sizeBytes can not be \(bytes)", remedy: "give a positive number",
                        option: "sizeBytes", value: "\(bytes)")))
        }
        let resizing = Resizing(
            wanted: request.sizeBytes.map { UInt64($0) }, mayShrink: request.shrink ?? false,
            most: largestSize(of: device, for: peer), uid: peer.uid)
        let before = device.info.sizeBytes
        let permission = { [self] in permitStart(for: device, "resize", peer) }
        let operation = UpgradeOperation(device, broker: self, purpose: .size(resizing), permission: permission) {
            [self] outcome in
            switch outcome {
            case .upgraded, .current:
                completion(.success(ResizeReply(previousBytes: before, device: description(of: device))))
            case .failed(let error): completion(.failure(error))
            }
        }
        operation.begin()
    }

    /// Bytes; a user whom no rule allows a device keeps those that there are.
    private func largestSize(of device: ManagedDevice, for peer: PeerCredentials) -> UInt64? {
        guard let rule = policy.rule(for: accessPeer(peer), target: device.info.target), rule.isAllow else {
            return device.info.sizeBytes
        }
        return rule.limits.maxSizeBytes
    }
}
