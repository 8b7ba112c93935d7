import CGnuTLS
import Dialing
import Glibc
import Programs
import SystemCalls

/// `ubd-nbd`: dials for `ubd`, hands the connections over, and keeps the device that is made of them.
public func runNBD() -> Int32 {
    var status: Int32 = 0
    guard let words = HelperProgram.words(of: "ubd-nbd", for: "Connects to NBD servers", target: "nbd", status: &status)
    else { return status }
    // Ctrl-C is for `ubd`, whose end ends this program, too.
    setsid()
    return Program(channel: FileDescriptor(owning: dialDescriptor)).run(words)
}

/// Writes what there is room for, and leaves the rest out: nobody may read a pipe before `ubd` has ended, and this program has
/// deadlines to keep.
func passOn(_ bytes: ArraySlice<UInt8>, to file: Int32) {
    // A pipe that can be written to has room for PIPE_BUF bytes (pipe(7)).
    for start in stride(from: bytes.startIndex, to: bytes.endIndex, by: Int(PIPE_BUF)) {
        var room = pollfd(fd: file, events: Int16(POLLOUT), revents: 0)
        guard poll(&room, 1, 0) == 1, room.revents & Int16(POLLOUT) != 0 else { return }
        let part = bytes[start..<min(start + Int(PIPE_BUF), bytes.endIndex)]
        _ = part.withUnsafeBytes { write(file, $0.baseAddress, $0.count) }
    }
}

private struct Program: ~Copyable {
    let channel: FileDescriptor

    func run(_ words: [[UInt8]]) -> Int32 {
        let attention = Attention()
        // When `ubd` is gone before the device is there, so is this program.
        attention.add(channel.raw) { .giveUp }
        do throws(DialFailure) {
            let arguments = try Arguments(words)
            let server = try command(arguments, attention)
            let orphans = server.flatMap { server in try? Orphans(attention) { [weak server] in server?.pid } }
            defer {
                if orphans != nil { Children.end() }
            }
            try server?.start()
            let address: NBDAddress
            if let server {
                address = NBDAddress(place: .local(path: server.socketPath), export: [], tls: nil)
            } else {
                address = try arguments.address(arguments.uri ?? "")
            }
            return try dial(address, arguments, server, attention)
        } catch {
            return tell(.failed(error)) ? 1 : 2
        }
    }

    private func command(_ arguments: Arguments, _ attention: Attention) throws(DialFailure) -> ServerCommand? {
        guard !arguments.command.isEmpty else { return nil }
        return try ServerCommand(arguments.command, attention) { passOn($0, to: STDERR_FILENO) }
    }

    private func dial(
        _ address: NBDAddress, _ arguments: Arguments, _ server: ServerCommand?, _ attention: Attention
    ) throws(DialFailure) -> Int32 {
        let dialer = Dialer(address: address, attention: attention)
        let connections: ConnectionSet
        do throws(DialFailure) { connections = try ConnectionSet.dial(dialer, count: arguments.connections) } catch {
            throw why(error, server, attention)
        }
        if arguments.isRecorded, let failure = ServerUser.distrust(connections.facts, at: address.placeText) {
            throw failure
        }
        guard tell(.agreed(connections.export(address)), files: connections.numbers),
            let order = awaitOrder(attention), leave()
        else {
            end(server, attention)
            return 1
        }
        Keeper(order, dialer, arguments, server, connections).run()
        return 0
    }

    /// Lets go of what belongs to whoever started this, and says so. Who keeps a device holds no terminal and no folder.
    private func leave() -> Bool {
        guard let null = try? FileDescriptor.null(), chdir("/") == 0 else { return false }
        for number in STDIN_FILENO...STDERR_FILENO { dup2(null.raw, number) }
        return (try? send(channel.raw, KeepOrder.done)) != nil
    }

    /// When a server that ubd started is why, its end says more than the connection's.
    private func why(_ error: DialFailure, _ server: ServerCommand?, _ attention: Attention) -> DialFailure {
        guard let server else { return error }
        if error.kind == .unreachable { try? attention.pause(Deadline(milliseconds: 300)) }
        let failure = server.failure
        end(server, attention)
        return failure ?? error
    }

    /// Ends the server with all the time that it needs, also when `ubd` is gone.
    private func end(_ server: ServerCommand?, _ attention: Attention) {
        attention.remove(channel.raw)
        server?.stop()
    }

    /// False when nobody hears it.
    private func tell(_ reply: DialReply, files: [Int32] = []) -> Bool {
        (try? send(channel.raw, reply.bytes, files: files)) != nil
    }

    /// The device that was made; nil when there is none. That it takes long is for `ubd` to decide.
    private func awaitOrder(_ attention: Attention) -> KeepOrder? {
        attention.remove(channel.raw)
        do { try attention.wait(for: channel.raw, POLLIN, Deadline(seconds: 3600)) } catch { return nil }
        var bytes = [UInt8](repeating: 0, count: longestDialMessage)
        let received = bytes.withUnsafeMutableBytes { buffer in
            try? receiveWithoutFiles(channel.raw, into: buffer)
        }
        guard case .bytes(let count)? = received else { return nil }
        return try? KeepOrder(bytes: Array(bytes.prefix(count)))
    }
}
