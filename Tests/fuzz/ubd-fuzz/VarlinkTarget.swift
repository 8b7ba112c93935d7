import BrokerInterface
import Targets
import Varlink

/// What a connection's bytes are cut into.
private struct Frames: Equatable {
    var messages: [[UInt8]] = []
    /// The connection was closed over a message longer than the limit.
    var isTooLong = false
    /// Bytes are left that belong to no message.
    var hasUnread = false
}

/// The first byte chooses how the rest, a client's bytes, is cut into pieces: the messages must not depend on it. Each is
/// then read as the broker reads it.
func testVarlink(_ input: [UInt8]) {
    guard let first = input.first else { return }
    let stream = input[1...]
    // A short limit half of the time, so that it is met.
    let limit = first & 0x80 == 0 ? JSONLimits.call.bytes : 96
    let whole = frames(of: stream, limit: limit) { 4096 }
    var state = UInt32(first) | 1
    let pieces = frames(of: stream, limit: limit) {
        // xorshift32 (Marsaglia 2003): mostly small pieces.
        state ^= state << 13
        state ^= state >> 17
        state ^= state << 5
        return 1 + Int(state % (first & 0x40 == 0 ? 7 : 300))
    }
    require(whole == pieces, "cut into pieces: \(pieces), whole: \(whole)")
    for message in whole.messages { testCall(message) }
}

private func frames(of stream: ArraySlice<UInt8>, limit: Int, piece: () -> Int) -> Frames {
    var reader = FrameReader(limit: limit)
    var frames = Frames()
    var left = stream
    while !left.isEmpty {
        let part = left.prefix(min(piece(), reader.room))
        left = left.dropFirst(part.count)
        do { try reader.append(part) } catch {
            require(error == .tooLong(limit: limit), "\(error)")
            frames.isTooLong = true
            return frames
        }
        while let message = reader.next() {
            require(message.count <= limit && !message.contains(0), "a message of \(message.count) bytes")
            frames.messages.append(message)
        }
        require(reader.room > 0, "no room although all messages were taken")
    }
    frames.hasUnread = reader.hasUnread
    return frames
}

/// One call, as the broker reads it.
private func testCall(_ message: [UInt8]) {
    guard let call = try? Call(message: message) else { return }
    // What is written may be longer than what was read: DEL and the C1 characters leave as escapes.
    let again = try? Call(message: call.message.dropLast(), limits: .reply)
    require(again == call, "\(call) became \(String(describing: again))")
    do {
        let request = try BrokerCall(call)
        if case .add(let add) = request { testPlan(add) }
        let written = request.call
        let read = try? BrokerCall(Call(message: written.message.dropLast(), limits: .reply))
        require(read == request, "\(request) became \(String(describing: read))")
    } catch {
        testError(error)
    }
}

/// What the broker relies on when a request was accepted.
private func testPlan(_ request: AddRequest) {
    let plan: AddPlan
    do { plan = try AddPlan(request) } catch { return testError(error) }
    require(AddPlan.queueCounts.contains(Int64(plan.queues)) && AddPlan.depths.contains(Int64(plan.depth)), "\(plan)")
    require(AddPlan.ioSizes.contains(Int64(plan.maxIOBytes)) && plan.maxIOBytes % 4096 == 0, "\(plan)")
    require(plan.id.map { AddPlan.ids.contains(Int64($0)) } ?? true, "\(plan)")
    require(plan.bufferBytes > 0, "\(plan)")
    require(plan.fileName.map { !$0.isEmpty && !$0.unicodeScalars.contains(where: \.isControl) } ?? true, "\(plan)")
    for entry in plan.options.entries {
        require(plan.target.option(entry.number)?.accepts(entry.value) == true, "\(entry) of \(plan.target.name)")
    }
    let size = plan.options.size ?? 0
    require(plan.options.offset <= TargetOption.largestSize - size, "\(plan.options)")
    if let cpus = plan.cpus { require(CPUList(cpus.text) == cpus && cpus.words.count <= 128, "\(cpus)") }
}

/// An error must arrive as it was sent.
private func testError(_ error: InterfaceError) {
    let reply = try? Reply(message: error.reply.message.dropLast())
    require(reply == error.reply, "\(error) became \(String(describing: reply))")
}

/// One reply of the broker's, as `ubd` reads it: whatever is understood survives being written and read again.
func testReply(_ message: [UInt8]) {
    guard let reply = try? Reply(message: message) else { return }
    require((try? Reply(message: reply.message.dropLast())) == reply, "\(reply)")
    let json = reply.parameters
    test(json, AddReply.init, \.json)
    test(json, ListReply.init, \.json)
    test(json, UpgradeReply.init, \.json)
    test(json, StatsReply.init, \.json)
    test(json, MonitorReply.init, \.json)
    test(json, InfoReply.init, \.json)
    test(json, ServiceInfoReply.init, \.json)
    test(json, InterfaceDescriptionReply.init, \.json)
}

private func test<Value: Equatable>(
    _ json: JSON, _ read: (JSON, UnknownFields) throws(InterfaceError) -> Value, _ written: (Value) -> JSON
) {
    guard let value = try? read(json, .ignore) else { return }
    let again = try? read(written(value), .refuse)
    require(again == value, "\(value) became \(String(describing: again))")
}
