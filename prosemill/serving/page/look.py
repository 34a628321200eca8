"""How the page looks: Gradio's theme in calm colours, with fonts that come from this machine, and what is the page's own."""

from gradio.themes import Base, colors, sizes
from gradio.themes.utils.fonts import Font

SANS = [Font(name) for name in ("ui-sans-serif", "system-ui", "sans-serif")]
MONO = [Font(name) for name in ("ui-monospace", "Consolas", "monospace")]


def theme() -> Base:
    """The theme, light and dark."""
    chosen = Base(
        primary_hue=colors.teal, neutral_hue=colors.stone, radius_size=sizes.radius_md, text_size=sizes.text_md, font=SANS, font_mono=MONO
    )
    return chosen.set(
        body_background_fill="*neutral_50",
        body_text_color_subdued="*neutral_500",
        block_background_fill="white",
        block_border_width="1px",
        block_shadow="none",
        block_label_background_fill="transparent",
        block_label_border_width="0",
        block_title_text_weight="600",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_text_color="white",
        slider_color="*primary_600",
    )


ICON = (
    "<link rel='icon' href=\"data:image/svg+xml,<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 32 32'>"
    "<rect width='32' height='32' rx='7' fill='%230f766e'/><path d='M9 10h14M9 16h14M9 22h8' stroke='white' stroke-width='3'/></svg>\">"
)

CSS = """
.gradio-container { max-width: 1180px !important; margin: 0 auto; padding: 0 !important; }
.gradio-container .main { padding: 24px 16px 40px; }
.html-container { padding: 0 !important; }
.dark input[type="range"] { --neutral-200: var(--neutral-600); }
.buttons { max-width: 22rem; }
#stop:not(:disabled) { color: #b42318; background: var(--block-background-fill); box-shadow: inset 0 0 0 1px currentcolor; }
.dark #stop:not(:disabled) { color: #fda29b; }
.answers { display: grid; gap: 16px; grid-template-columns: repeat(auto-fit, minmax(min(280px, 100%), 1fr)); }
body:has(#with-base input:not(:checked)) #base-answer { display: none; }

.head { display: flex; flex-wrap: wrap; align-items: baseline; gap: 4px 16px; }
.head h1 { margin: 0; font-size: 1.7rem; font-weight: 650; letter-spacing: -0.02em; }
.chips { margin: 0; display: flex; flex-wrap: wrap; gap: 6px; }
.chips span { padding: 2px 10px; border-radius: 99px; font-size: 0.8rem; background: var(--primary-100); color: var(--primary-900); }
.dark .chips span { background: var(--primary-900); color: var(--primary-100); }

.note { margin: 0; min-height: 1.4em; font-size: 0.85rem; color: var(--body-text-color-subdued); }
.note.fault { color: #b42318; }
.dark .note.fault { color: #fda29b; }

.answers article { padding: 16px 20px; display: flex; flex-direction: column; box-sizing: border-box;
  background: var(--block-background-fill); border: 1px solid var(--border-color-primary); border-radius: var(--block-radius); }
.answers h2 { margin: 0 0 8px; font-size: 0.85rem; font-weight: 600; }
.answers .text { flex: 1; margin: 0; min-height: 9em; white-space: pre-wrap; overflow-wrap: anywhere;
  font: 1.02rem/1.6 "Charter", "Iowan Old Style", Georgia, serif; }
.answers .given, .answers .empty { color: var(--body-text-color-subdued); }
.answers .empty { font-style: italic; }
.answers footer { margin-top: 12px; min-height: 1.4em; font-size: 0.75rem; color: var(--body-text-color-subdued); overflow-wrap: anywhere; }
body:has(#stop:not(:disabled)) .growing::after { content: "▍"; color: var(--primary-500); animation: blink 1s steps(2) infinite; }
@keyframes blink { 50% { opacity: 0; } }

.report table { width: 100%; max-width: 44rem; border-collapse: collapse; font-size: 0.85rem; }
.report th, .report td { padding: 5px 8px; text-align: right; font-variant-numeric: tabular-nums;
  border-bottom: 1px solid var(--border-color-primary); }
.report th { font-weight: 600; color: var(--body-text-color-subdued); }
.report :is(th, td):first-child { text-align: left; padding-left: 0; }
.report p { margin: 0 0 8px; font-size: 0.85rem; }
"""
