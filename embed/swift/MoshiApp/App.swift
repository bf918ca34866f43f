import Moshi
import MoshiTalk
import SwiftUI

@main
struct MoshiApp: App {
  @State private var talk = Talk()
  @Environment(\.scenePhase) private var phase

  var body: some Scene {
    WindowGroup { TalkView(talk: talk) }
      .onChange(of: phase) { _, now in
        // In the background iOS stops the GPU's work of an app, so the conversation waits.
        #if os(iOS)
          if now == .background { talk.handle(.interrupt) } else if now == .active { talk.resume() }
        #endif
      }
  }
}

struct TalkView: View {
  let talk: Talk

  var body: some View {
    VStack(alignment: .leading, spacing: 16) {
      ScrollView {
        Text(talk.transcript.text).font(.title3).frame(maxWidth: .infinity, alignment: .leading)
      }
      .defaultScrollAnchor(.bottom)
      ProgressView("you", value: talk.heard).tint(.blue)
      ProgressView("Moshi", value: talk.said).tint(.green)
      status
      HStack {
        Button(talk.state.runs ? "Stop" : "Talk") { talk.state.runs ? talk.stop() : talk.start() }
          .buttonStyle(.borderedProminent)
        Button(talk.muted ? "Unmute" : "Mute") { talk.handle(.mute(!talk.muted)) }.disabled(!talk.state.runs)
      }
    }
    .padding()
  }

  @ViewBuilder private var status: some View {
    switch talk.state {
    case .idle: Text("Wear headphones, or turn the speaker down.").foregroundStyle(.secondary)
    case .loading: ProgressView("reading the weights")
    case .talking(let muted): Text(muted ? "muted" : "listening").foregroundStyle(.secondary)
    case .interrupted: Text("waiting for the sound to come back").foregroundStyle(.secondary)
    case .failed(let words): Text(words).foregroundStyle(.red)
    }
  }
}
